#include "curves/serving.h"

#include <algorithm>
#include <bit>
#include <deque>
#include <functional>
#include <limits>
#include <queue>
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

class Run {
 public:
  Run(const Requests& requests, const EngineCost& cost)
      : in_(requests), cost_(cost), size_(requests.chunks.size) {
    std::int64_t names = 0;
    for (std::size_t i = 0; i < in_.chunks.count(); ++i) names = std::max(names, in_.chunks.ids[i]);
    on_device_.assign(static_cast<std::size_t>(names) + 1, kLater);
    stored_ = on_device_;
    due_.assign(in_.at, in_.at + size_);
    loaded_by_.assign(size_, 0);
    held_by_.assign(size_, 0);
    free_.assign(in_.tier_count, 0);
    counts_.assign(kGaps, 0);
    out_.ttft.assign(size_, 0);
    out_.e2e.assign(size_, 0);
    out_.hits.assign(size_ * in_.tier_count, 0);
  }

  Serving run() {
    if (cost_.clients > 0) {
      for (std::int64_t i = 0; i < cost_.clients; ++i) send(0);
    }
    while (true) {
      arrive();
      const double seconds = schedule();
      if (seconds < 0) {
        const double next = std::min(next_due(), loading_.empty() ? kLater : loading_.top().first);
        if (next == kLater) break;
        now_ = std::max(now_, next);
        continue;
      }
      step(seconds);
    }
    for (std::size_t i = 0; i < kGaps; ++i) {
      if (counts_[i] == 0) continue;
      out_.gaps.push_back(gap_of(i));
      out_.counts.push_back(counts_[i]);
    }
    if (size_ > 0) out_.answers /= static_cast<double>(size_);
    return std::move(out_);
  }

 private:
  void send(double at) {
    if (sent_ == size_) return;
    due_[sent_] = at;
    waiting_.push_back(sent_++);
  }

  double next_due() const { return cost_.clients == 0 && sent_ < size_ ? due_[sent_] : kLater; }

  void arrive() {
    while (next_due() <= now_) waiting_.push_back(sent_++);
    while (!loading_.empty() && loading_.top().first <= now_) {
      ready_.push_back(loading_.top().second);
      loading_.pop();
    }
  }

  const std::int64_t* chunks(std::size_t i) const { return in_.chunks.ids + in_.chunks.offsets[i]; }

  // Writes hits of a request by tier, up to the first chunk that is still being made.
  void look_up(std::size_t i, std::int32_t* hits) const {
    const std::int32_t* const held = in_.hits + i * in_.tier_count;
    const std::int64_t* chunk = chunks(i);
    bool more = true;
    for (std::size_t t = 0; t < in_.tier_count; ++t) {
      const auto& from = t == 0 && cost_.device ? on_device_ : stored_;
      hits[t] = 0;
      while (more && hits[t] < held[t]) {
        more = from[static_cast<std::size_t>(*chunk)] <= now_;
        if (!more) break;
        ++hits[t];
        ++chunk;
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
        held_by_[i] = needs;
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
    if (decoding_ > 0) {
      seconds += cost_.decode_s + cost_.decode_token_s * static_cast<double>(there_);
    }
    return seconds + cost_.step_s;
  }

  // What no tier holds any more is to be computed before another finds it.
  void forget(std::size_t i) {
    std::int64_t held = 0;
    for (std::size_t t = 0; t < in_.tier_count; ++t) held += in_.hits[i * in_.tier_count + t];
    const std::int64_t* const chunk = chunks(i);
    const auto length = static_cast<std::int64_t>(in_.chunks.length(i));
    for (std::int64_t k = held; k < length; ++k) {
      const auto c = static_cast<std::size_t>(chunk[k]);
      if (on_device_[c] <= now_ && stored_[c] == kLater) continue;  // is being made just now
      on_device_[c] = stored_[c] = kLater;
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
      double& from = on_device_[static_cast<std::size_t>(chunk[k])];
      from = std::min(from, now_);
    }
    return cost_.token_s * n + cost_.pair_s * n * (m + n / 2);
  }

  void step(double seconds) {
    now_ += seconds;
    ++steps_;
    if (decoding_ > 0) counts_[gap_bin(seconds)] += decoding_;
    out_.busy_s += seconds;
    there_ += decoding_;
    answered_ += decoding_;
    held_ += decoding_;
    while (!decoders_.empty() && decoders_.top().first <= steps_) {
      const std::size_t i = decoders_.top().second;
      decoders_.pop();
      --decoding_;
      const std::int64_t output = in_.output[i];
      there_ -= in_.prompt[i] + output;
      answered_ -= output;
      held_ -= held_by_[i] + output;
      end(i);
    }
    while (!prefilling_.empty() && prefilling_.front().rest == 0) {
      const std::size_t i = prefilling_.front().number;
      prefilling_.pop_front();
      const double first = std::max(now_, loaded_by_[i]);
      out_.ttft[i] = first - due_[i];
      const std::int64_t* const chunk = chunks(i);
      for (std::size_t k = 0; k < in_.chunks.length(i); ++k) {
        double& from = stored_[static_cast<std::size_t>(chunk[k])];
        from = std::min(from, now_);
      }
      if (in_.output[i] <= 1) {
        held_ -= held_by_[i];
        end(i);
        continue;
      }
      decoders_.emplace(steps_ + in_.output[i] - 1, i);
      ++decoding_;
      there_ += in_.prompt[i] + 1;
      ++answered_;
      ++held_;
    }
  }

  void end(std::size_t i) {
    out_.e2e[i] = std::max(now_ - due_[i], out_.ttft[i]);
    if (cost_.clients > 0) send(now_);
  }

  const Requests in_;
  const EngineCost cost_;
  const std::size_t size_;
  std::vector<double> on_device_, stored_;  // by chunk: the time from which it is there
  std::vector<double> due_, loaded_by_, free_;
  std::vector<std::int64_t> held_by_, counts_;
  std::deque<std::size_t> waiting_, ready_;
  Earliest<Finish> loading_;
  std::deque<Active> prefilling_;
  Earliest<std::pair<std::int64_t, std::size_t>> decoders_;  // by the step of the last token
  std::size_t sent_ = 0;
  double now_ = 0;
  std::int64_t steps_ = 0, decoding_ = 0;
  std::int64_t there_ = 0, answered_ = 0, held_ = 0;  // tokens: of decoders, of answers, in all
  Serving out_;
};

}  // namespace

Serving serve(const Requests& requests, const EngineCost& cost) {
  return Run(requests, cost).run();
}

}  // namespace lmcache
