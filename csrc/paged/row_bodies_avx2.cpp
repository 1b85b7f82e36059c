// Compiled with -mavx2 (see CMakeLists.txt); calls nothing of the standard library.
#include "paged/row_bodies.inc"

namespace lmcache {

const RowBodies kRowBodiesAvx2 = {encode, decode};

}  // namespace lmcache
