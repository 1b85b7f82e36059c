#include "paged/row_bodies.inc"

namespace lmcache {

const RowBodies kRowBodies = {encode, decode};

}  // namespace lmcache
