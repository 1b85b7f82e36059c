#include "paged/row_bodies.inc"

namespace lmcache {

const RowBodies kRowBodies = {encode, decode, rotate};

}  // namespace lmcache
