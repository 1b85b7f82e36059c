#include "ledger/lists.h"

namespace lmcache {

// All from `first` to `last` are set aside: they are one run.
void Lists::join(Slot first, Slot last) {
  nodes_[first].end = last;
  nodes_[last].end = first;
}

void Lists::put(Slot slot, std::uint8_t list) {
  remove(slot);
  Ends& ends = ends_[list];
  Node& node = nodes_[slot];
  node = Node{ends.newest, kNoSlot, kNoSlot, list, 0, false};
  (ends.newest == kNoSlot ? ends.oldest : nodes_[ends.newest].newer) = slot;
  ends.newest = slot;
  ++ends.size;
}

void Lists::remove(Slot slot) {
  Node& node = nodes_[slot];
  if (node.list == kNowhere) return;
  const bool older = aside(node.older), newer = aside(node.newer);
  if (!node.aside) {
    if (older && newer) join(nodes_[node.older].end, nodes_[node.newer].end);
  } else if (!older && newer) {
    join(node.newer, node.end);
  } else if (older && !newer) {
    join(node.end, node.older);
  }
  Ends& ends = ends_[node.list];
  (node.older == kNoSlot ? ends.oldest : nodes_[node.older].newer) = node.newer;
  (node.newer == kNoSlot ? ends.newest : nodes_[node.newer].older) = node.older;
  --ends.size;
  node = Node{};
}

// Returns the newer end of the run that the chunk is part of now.
Slot Lists::set_aside(Slot slot) {
  Node& node = nodes_[slot];
  node.aside = true;
  const Slot first = aside(node.older) ? nodes_[node.older].end : slot;
  const Slot last = aside(node.newer) ? nodes_[node.newer].end : slot;
  join(first, last);
  return last;
}

Slot Lists::victim(std::uint8_t list) {
  Slot slot = ends_[list].oldest;
  while (slot != kNoSlot) {
    ++table_.steps;
    Slot last = nodes_[slot].end;
    if (!nodes_[slot].aside) {
      if (!table_.spared(slot)) return slot;
      last = set_aside(slot);
    }
    slot = nodes_[last].newer;
  }
  return kNoSlot;
}

void Lists::turn_to(Slot victim) {
  Node& node = nodes_[victim];
  if (node.older == kNoSlot) return;
  Ends& ends = ends_[node.list];
  const Slot first = ends.oldest, last = node.older, newest = ends.newest;
  ends.oldest = victim;
  node.older = kNoSlot;
  nodes_[newest].newer = first;
  nodes_[first].older = newest;
  nodes_[last].newer = kNoSlot;
  ends.newest = last;
  if (aside(newest)) join(nodes_[newest].end, last);
}

void Lists::release(Slot slot) {
  Node& node = nodes_[slot];
  if (!node.aside) return;
  const bool older = aside(node.older), newer = aside(node.newer);
  if (older && newer) {
    Slot down = node.older, up = node.newer;
    while (aside(nodes_[down].older) && aside(nodes_[up].newer)) {
      ++table_.steps;
      down = nodes_[down].older;
      up = nodes_[up].newer;
    }
    const bool at_first = !aside(nodes_[down].older);
    const Slot first = at_first ? down : nodes_[up].end;
    const Slot last = at_first ? nodes_[down].end : up;
    join(first, node.older);
    join(node.newer, last);
  } else if (newer) {
    join(node.newer, node.end);
  } else if (older) {
    join(node.end, node.older);
  }
  node.aside = false;
}

std::vector<Slot> Lists::listed(std::uint8_t list) const {
  std::vector<Slot> slots;
  slots.reserve(size(list));
  for (Slot slot = oldest(list); slot != kNoSlot; slot = nodes_[slot].newer) slots.push_back(slot);
  return slots;
}

}  // namespace lmcache
