// Compiled with -mavx2 (see CMakeLists.txt); calls nothing of the standard library.
#include "row_bodies.inc"

namespace lmcache {

const RowBodies kRowBodiesAvx2 = {encode, decode, rotate};

}  // namespace lmcache
