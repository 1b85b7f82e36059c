#include "curves/serving.h"

#include <algorithm>
#include <bit>
#include <deque>
#include <functional>
#include <limits>
#include <queue>
#include <unordered_map>
#include <utility>

namespace lmcache {

namespace {

constexpr double kLater = std::numeric_limits<double>::infinity();

// Gaps are counted by their leading bits: the exponent and eight of the fraction, 0.4 % apart.
constexpr int kDropped = 52 - 8;
constexpr std::uint64_t kShortest = std::bit_cast<std::uint64_t>(1e-7) >> kDropped;
constexpr std::size_t kGaps =
    (std::bit_cast<std::uint64_t>(1e7) >> kDropped) - kShortest + 1;

std::size_t gap_bin(double seconds) {
  const std::uint64_t bits = std::bit_cast<std::uint64_t>(seconds) >> kDropped;
  return std::min<std::size_t>(kGaps - 1, bits < kShortest ? 0 : bits - kShortest);
}

double gap_of(std::size_t bin) {  // its middle
  const std::uint64_t half = std::uint64_t{1} << (kDropped - 1);
  return std::bit_cast<double>(((bin + kShortest) << kDropped) | half);
}

struct Active {
  std::size_t number;
  std::int64_t rest, cached;  // tokens to compute, and those that are there
};

using Finish = std::pair<double, std::size_t>;
template <typename T>
using Earliest = std::priority_queue<T, std::vector<T>, std::greater<T>>;

// What all engines write to. Chunks are there from a time on.
struct Board {
  explicit Board(const Requests& in) : due(in.at, in.at + in.chunks.size), counts(kGaps, 0) {
    places.assign(names(in.chunks.ids, in.chunks.count()), {kLater, kLater});
    if (in.pooled != nullptr) pooled.assign(names(in.pooled, in.chunks.count()), kLater);
    out.ttft.assign(due.size(), 0);
    out.e2e.assign(due.size(), 0);
    out.hits.assign(due.size() * in.tier_count, 0);
  }

  static std::size_t names(const std::int64_t* of, std::size_t count) {
    return count == 0 ? 0 : static_cast<std::size_t>(*std::max_element(of, of + count)) + 1;
  }

  struct Place {
    double on_device, stored;
  };

  std::vector<Place> places;
  std::vector<double> pooled, due;
  std::vector<std::int64_t> counts;  // of each gap
  Serving out;
};

class Engine {
 public:
  Engine(const Requests& requests, const EngineCost& cost, Board& board)
      : in_(requests), cost_(cost), board_(board), out_(board.out), free_(in_.tier_count, 0.0) {}

  // The time up to which it has worked; kLater where nothing is left to do.
  double clock() const { return idle_ ? kLater : now_; }
  double busy_s() const { return busy_s_; }

  void expect(std::size_t i) { coming_.push_back(i); }

  // A request of a closed loop comes. Returns whether there was nothing to do.
  bool send(std::size_t i, double at) {
    const bool was_idle = idle_;
    board_.due[i] = at;
    if (idle_) now_ = std::max(now_, at);
    idle_ = false;
    const auto later = [this](double time, std::size_t other) { return time < board_.due[other]; };
    coming_.insert(std::upper_bound(coming_.begin(), coming_.end(), at, later), i);
    return was_idle;
  }

  void advance(std::vector<std::size_t>& ended) {
    arrive();
    const bool quiet = prefilling_.empty() && waiting_.empty() && ready_.empty();
    // Not in a closed loop of several: what ends elsewhere meanwhile may send the next one here.
    if (quiet && decoding_ > 0 && (cost_.clients == 0 || in_.replicas == 1)) decode();
    if (quiet) arrive();
    const double seconds = schedule();
    if (seconds >= 0) return step(seconds, ended);
    const double next = std::min(next_due(), loading_.empty() ? kLater : loading_.top().first);
    if (next == kLater) {
      idle_ = true;
    } else {
      now_ = std::max(now_, next);
    }
  }

 private:
  double next_due() const { return coming_.empty() ? kLater : board_.due[coming_.front()]; }

  // Steps that only decode, up to before the one that ends an answer, or the next request.
  void decode() {
    const std::int64_t last = decoders_.top().first - 1;
    const double until = std::min(next_due(), loading_.empty() ? kLater : loading_.top().first);
    while (steps_ < last && now_ < until) pass(decode_s() + cost_.step_s);
  }

  double decode_s() const {
    return cost_.decode_s + cost_.decode_token_s * static_cast<double>(there_);
  }

  // Time goes on by a step, which has a token of each request that decodes.
  void pass(double seconds) {
    now_ += seconds;
    ++steps_;
    if (decoding_ > 0) board_.counts[gap_bin(seconds)] += decoding_;
    busy_s_ += seconds;
    there_ += decoding_;
    answered_ += decoding_;
    held_ += decoding_;
  }

  void arrive() {
    while (next_due() <= now_) {
      waiting_.push_back(coming_.front());
      coming_.pop_front();
    }
    while (!loading_.empty() && loading_.top().first <= now_) {
      ready_.push_back(loading_.top().second);
      loading_.pop();
    }
  }

  const std::int64_t* chunks(std::size_t i) const { return in_.chunks.ids + in_.chunks.offsets[i]; }

  // The pool's tier; one behind the last where there is none.
  std::size_t pool() const { return in_.tier_count - (in_.pooled != nullptr ? 1 : 0); }

  // Writes hits of a request by tier, up to the first chunk that is still being made.
  void look_up(std::size_t i, std::int32_t* hits) const {
    const std::int32_t* const held = in_.hits + i * in_.tier_count;
    std::int64_t at = in_.chunks.offsets[i];
    bool more = true;
    for (std::size_t t = 0; t < in_.tier_count; ++t) {
      const bool own = t == 0 && cost_.device;
      const bool shared = t == pool();
      const std::int64_t* const names = shared ? in_.pooled : in_.chunks.ids;
      hits[t] = 0;
      while (more && hits[t] < held[t]) {
        const auto c = static_cast<std::size_t>(names[at]);
        const double from = shared ? board_.pooled[c]
                            : own  ? board_.places[c].on_device
                                   : board_.places[c].stored;
        more = from <= now_;
        if (!more) break;
        ++hits[t];
        ++at;
      }
    }
  }

  // Plans a step's prompts and returns its seconds; below 0 if there is nothing to do.
  double schedule() {
    std::int64_t left = std::max<std::int64_t>(1, cost_.budget - decoding_);
    double seconds = 0;
    bool any = decoding_ > 0;
    for (std::size_t k = 0; k < prefilling_.size() && left > 0; ++k) {
      seconds += compute(prefilling_[k], left);
      any = true;
    }
    const auto running = [this] {
      return decoding_ + static_cast<std::int64_t>(prefilling_.size());
    };
    while (left > 0 && running() < cost_.most) {
      std::size_t i = 0;
      if (!ready_.empty()) {
        i = ready_.front();
        ready_.pop_front();
      } else if (waiting_.empty()) {
        break;
      } else {
        i = waiting_.front();
        std::int32_t* const hits = out_.hits.data() + i * in_.tier_count;
        look_up(i, hits);
        const std::int64_t shared = cost_.device && in_.tier_count ? hits[0] * in_.chunk_tokens : 0;
        const std::int64_t needs = std::max<std::int64_t>(1, in_.prompt[i] - shared);
        const bool alone = running() == 0 && loading_.empty() && ready_.empty();
        if (cost_.room >= 0 && held_ + needs > cost_.room && !alone) break;
        waiting_.pop_front();
        held_ += needs;
        needs_[i] = needs;
        out_.answers += static_cast<double>(answered_);
        forget(i);
        if (load(i, hits) && !cost_.overlap) continue;
      }
      prefilling_.push_back(begin(i));
      seconds += compute(prefilling_.back(), left);
      any = true;
    }
    out_.most_running = std::max(out_.most_running, running());
    if (!any) return -1;
    prompts_s_ = seconds;
    if (decoding_ > 0) seconds += decode_s();
    return seconds + cost_.step_s;
  }

  // What no tier holds any more is to be computed before another finds it. What a pool got since the
  // request came is of one that was served before it elsewhere.
  void forget(std::size_t i) {
    std::int64_t held = 0;
    for (std::size_t t = 0; t < in_.tier_count; ++t) held += in_.hits[i * in_.tier_count + t];
    const std::int64_t end = in_.chunks.offsets[i + 1];
    for (std::int64_t k = in_.chunks.offsets[i] + held; k < end; ++k) {
      if (in_.pooled != nullptr) {
        double& from = board_.pooled[static_cast<std::size_t>(in_.pooled[k])];
        if (from <= board_.due[i]) from = kLater;
      }
      Board::Place& place = board_.places[static_cast<std::size_t>(in_.chunks.ids[k])];
      // is being made just now
      if (place.on_device <= now_ && place.stored == kLater) continue;
      place = {kLater, kLater};
    }
  }

  bool load(std::size_t i, const std::int32_t* hits) {
    double ready = 0;
    for (std::size_t t = 0; t < in_.tier_count; ++t) {
      const LoadCost& tier = in_.tiers[t];
      if (hits[t] == 0 || (t == 0 && cost_.device)) continue;
      const double n = hits[t], tokens = n * static_cast<double>(in_.chunk_tokens);
      free_[t] = std::max(now_, free_[t]) + tier.call_s + n * tier.chunk_s + tokens * tier.token_s;
      ready = std::max(ready, free_[t]);
    }
    // What comes from a pool is on this device and in its tiers only then.
    std::int64_t found = 0;
    for (std::size_t t = 0; t < in_.tier_count; ++t) found += hits[t];
    for (std::int64_t k = 0; k < found && in_.pooled != nullptr; ++k) {
      double& from = board_.places[static_cast<std::size_t>(chunks(i)[k])].on_device;
      from = std::min(from, std::max(ready, now_));
    }
    if (ready <= now_) return false;
    loaded_by_[i] = ready;
    if (!cost_.overlap) loading_.emplace(ready, i);
    return true;
  }

  Active begin(std::size_t i) const {
    std::int64_t found = 0;
    for (std::size_t t = 0; t < in_.tier_count; ++t) found += out_.hits[i * in_.tier_count + t];
    const std::int64_t prompt = std::max<std::int64_t>(1, in_.prompt[i]);
    const std::int64_t cached = std::min(found * in_.chunk_tokens, prompt - 1);
    return {i, prompt - cached, cached};
  }

  // Takes tokens of a prompt into this step and returns the seconds of their work.
  double compute(Active& one, std::int64_t& left) {
    const std::int64_t count = std::min(one.rest, left);
    const double n = static_cast<double>(count), m = static_cast<double>(one.cached);
    const std::int64_t full = static_cast<std::int64_t>(in_.chunks.length(one.number));
    const std::int64_t* const chunk = chunks(one.number);
    std::int64_t k = one.cached / in_.chunk_tokens;
    one.cached += count;
    one.rest -= count;
    left -= count;
    for (const std::int64_t end = std::min(full, one.cached / in_.chunk_tokens); k < end; ++k) {
      double& from = board_.places[static_cast<std::size_t>(chunk[k])].on_device;
      from = std::min(from, now_);
    }
    return cost_.token_s * n + cost_.pair_s * n * (m + n / 2);
  }

  void step(double seconds, std::vector<std::size_t>& ended) {
    pass(seconds);
    // Behind the first stage of a pipeline come the others; the next step begins before they end.
    const double through = now_ + static_cast<double>(cost_.stages - 1) * prompts_s_;
    while (!decoders_.empty() && decoders_.top().first <= steps_) {
      const std::size_t i = decoders_.top().second;
      decoders_.pop();
      --decoding_;
      const std::int64_t output = in_.output[i];
      there_ -= in_.prompt[i] + output;
      answered_ -= output;
      held_ -= needs_[i] + output;
      end(i, ended);
    }
    while (!prefilling_.empty() && prefilling_.front().rest == 0) {
      const std::size_t i = prefilling_.front().number;
      prefilling_.pop_front();
      const auto loaded = loaded_by_.find(i);
      const double first = std::max(through, loaded == loaded_by_.end() ? 0 : loaded->second);
      if (loaded != loaded_by_.end()) loaded_by_.erase(loaded);
      out_.ttft[i] = first - board_.due[i];
      for (std::int64_t k = in_.chunks.offsets[i]; k < in_.chunks.offsets[i + 1]; ++k) {
        double& from = board_.places[static_cast<std::size_t>(in_.chunks.ids[k])].stored;
        from = std::min(from, through);
        if (in_.pooled == nullptr) continue;
        double& shared = board_.pooled[static_cast<std::size_t>(in_.pooled[k])];
        shared = std::min(shared, through);
      }
      if (in_.output[i] <= 1) {
        held_ -= needs_[i];
        end(i, ended);
        continue;
      }
      decoders_.emplace(steps_ + in_.output[i] - 1, i);
      ++decoding_;
      there_ += in_.prompt[i] + 1;
      ++answered_;
      ++held_;
    }
  }

  void end(std::size_t i, std::vector<std::size_t>& ended) {
    out_.e2e[i] = std::max(now_ - board_.due[i], out_.ttft[i]);
    needs_.erase(i);
    ended.push_back(i);
  }

  const Requests& in_;
  const EngineCost& cost_;
  Board& board_;
  Serving& out_;
  std::vector<double> free_;
  std::unordered_map<std::size_t, double> loaded_by_;
  std::unordered_map<std::size_t, std::int64_t> needs_;  // tokens of those that run
  std::deque<std::size_t> coming_, waiting_, ready_;
  Earliest<Finish> loading_;
  std::deque<Active> prefilling_;
  Earliest<std::pair<std::int64_t, std::size_t>> decoders_;  // by the step of the last token
  bool idle_ = false;
  double now_ = 0, busy_s_ = 0, prompts_s_ = 0;  // prompts_s_: of a step
  std::int64_t steps_ = 0, decoding_ = 0;
  std::int64_t there_ = 0, answered_ = 0, held_ = 0;  // tokens: of decoders, of answers, in all
};

}  // namespace

Serving serve(const Requests& requests, const EngineCost& cost) {
  const std::size_t size = requests.chunks.size;
  Board board(requests);
  std::vector<Engine> engines;
  engines.reserve(requests.replicas);
  for (std::size_t r = 0; r < requests.replicas; ++r) engines.emplace_back(requests, cost, board);
  const auto engine = [&](std::size_t i) -> Engine& {
    return engines[requests.replica == nullptr ? 0 : static_cast<std::size_t>(requests.replica[i])];
  };
  std::size_t sent = size;
  if (cost.clients > 0) {
    sent = std::min(size, static_cast<std::size_t>(cost.clients));
    for (std::size_t i = 0; i < sent; ++i) engine(i).send(i, 0);
  } else {
    for (std::size_t i = 0; i < size; ++i) engine(i).expect(i);
  }
  Earliest<std::pair<double, std::size_t>> clocks;  // who is behind acts first
  for (std::size_t r = 0; r < engines.size(); ++r) clocks.emplace(engines[r].clock(), r);
  std::vector<std::size_t> ended;
  while (!clocks.empty()) {
    const std::size_t r = clocks.top().second;
    clocks.pop();
    ended.clear();
    engines[r].advance(ended);
    const double now = engines[r].clock();
    if (now != kLater) clocks.emplace(now, r);
    for (std::size_t k = 0; cost.clients > 0 && k < ended.size() && sent < size; ++k, ++sent) {
      Engine& other = engine(sent);
      if (other.send(sent, now)) clocks.emplace(other.clock(), &other - engines.data());
    }
  }
  Serving& out = board.out;
  for (std::size_t i = 0; i < kGaps; ++i) {
    if (board.counts[i] == 0) continue;
    out.gaps.push_back(gap_of(i));
    out.counts.push_back(board.counts[i]);
  }
  for (const Engine& one : engines) out.busy_s = std::max(out.busy_s, one.busy_s());
  if (size > 0) out.answers /= static_cast<double>(size);
  return std::move(board.out);
}

}  // namespace lmcache
