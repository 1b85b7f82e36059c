// Memory that is mapped and faulted in once.
#pragma once

#include <cstddef>

namespace lmcache {

// Anonymous memory, zeroed, every page present: the first write costs no page fault. 4096-aligned;
// on huge pages where the kernel gives them, and of `numa_node` as far as that one has room (-1: of
// any). Throws std::invalid_argument for a size of 0 and std::bad_alloc (the text says how much was
// asked for and how much there is) if the machine has not that much.
class Slab {
 public:
  explicit Slab(std::size_t nbytes, int numa_node = -1);
  ~Slab();
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;

  void* address() const { return address_; }
  std::size_t nbytes() const { return nbytes_; }

 private:
  void* address_;
  std::size_t nbytes_;
  std::size_t mapped_;
};

}  // namespace lmcache
