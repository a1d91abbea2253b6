#include "cpu/selection.h"

#include <cmath>

#include "cpu/binding.h"
#include "cpu/dispatch.h"

#define KGREC_KERNELS "cpu/selection_kernels.h"
#include "cpu/foreach_isa.h"

namespace kgrec::cpu {
namespace {

// Elements that are worth a thread: with noise to draw, and where memory is only read.
constexpr int64_t kDrawGrain = 1 << 14;
constexpr int64_t kReadGrain = 1 << 16;
// Elements of a range that counters of 32 bits count.
constexpr int64_t kCountable = 1 << 30;

Tensor gumbel_noise(int64_t n, const Tensor& rng, int64_t stream) {
  const int64_t* seed_step = flat<int64_t>(rng, "rng", 2);
  STD_TORCH_CHECK(n >= 0, "n is ", n, ", expected a count");
  Tensor out = make(rng, {n}, ScalarType::Float);
  GumbelParams params;
  params.draw = philox_draw(seed_step[0], seed_step[1], stream);
  params.out = out.mutable_data_ptr<float>();
  if (n > 0) {
    torch::stable::parallel_for(0, n, kDrawGrain, [&](int64_t begin, int64_t end) {
      KGREC_ISA_CALL(gumbel_range, params, begin, end);
    });
  }
  return out;
}

// f(begin, end) on all threads, ranges that can be counted.
template <class F>
void for_countable(int64_t n, int64_t grain, const F& f) {
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at += kCountable) {
      f(at, std::min(at + kCountable, end));
    }
  });
}

// Finds the bounds: digit by digit, from the highest on, the key of the element that comes last.
void find_bounds(TopkParams& p, int64_t n, std::optional<int64_t> k, std::optional<double> rate) {
  std::vector<int64_t> histogram(kBins);
  int64_t unset = 0;
  p.histogram = histogram.data();
  p.unset = &unset;
  const int key_bits = p.dtype == DType::f64 ? 64 : 32;
  p.shift = key_bits - kDigitBits;
  p.bits = kDigitBits;
  for_countable(n, kDrawGrain, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(topk_keys_range, p, begin, end);
  });
  int64_t left = k ? std::min(*k, n - unset)
                   : static_cast<int64_t>(std::floor(*rate * static_cast<double>(n - unset)));
  p.bound_before = p.bound_after = ~uint64_t{0};
  p.cut = n;
  if (left <= 0) {
    return;
  }
  for (;;) {
    if (p.prefix == 0) {
      histogram[0] -= unset;  // their keys are 0
    }
    int64_t digit = kBins - 1;
    for (; histogram[digit] < left; --digit) {
      left -= histogram[digit];
    }
    p.prefix = p.prefix << p.bits | uint64_t(digit);
    if (histogram[digit] == left) {  // all with this prefix are taken: no need to look further
      const uint64_t least = std::max<uint64_t>(p.prefix << p.shift, 1);
      p.bound_before = p.bound_after = least - 1;
      return;
    }
    if (p.shift == 0) {  // not all of the equal ones
      p.bound_before = p.prefix - 1;
      p.bound_after = p.prefix;
      p.cut = KGREC_ISA_CALL(topk_position_after, p, n, left);
      return;
    }
    p.bits = std::min(p.shift, kDigitBits);
    p.shift -= p.bits;
    std::fill(histogram.begin(), histogram.end(), 0);
    for_countable(n, kReadGrain, [&](int64_t begin, int64_t end) {
      KGREC_ISA_CALL(topk_count_range, p, begin, end);
    });
  }
}

Tensor topk_mask(
    const Tensor& values, std::optional<int64_t> k, std::optional<double> rate, bool largest,
    const std::optional<Tensor>& mask, const std::optional<Tensor>& rng,
    std::vector<int64_t> streams) {
  check_device(values, "values");
  STD_TORCH_CHECK(k.has_value() != rate.has_value(), "k or rate is expected, and not both");
  STD_TORCH_CHECK(streams.size() <= kMaxStreams, "streams has more than ", kMaxStreams, " numbers");
  STD_TORCH_CHECK(streams.empty() || rng.has_value(), "rng is expected with streams");
  const int64_t n = values.numel();
  TopkParams params;
  params.dtype = dtype_of(values, "values");
  const Tensor source = torch::stable::contiguous(values);
  params.values = source.const_data_ptr();
  const Tensor bits = mask ? torch::stable::contiguous(*mask) : source;
  params.mask = mask ? mask_of(bits, n) : nullptr;
  params.largest = largest;
  params.num_streams = static_cast<int>(streams.size());
  const Tensor seed_step = rng ? torch::stable::contiguous(*rng) : source;
  for (int s = 0; s < params.num_streams; ++s) {
    const int64_t* seed = flat<int64_t>(seed_step, "rng", 2);
    params.draws[s] = philox_draw(seed[0], seed[1], streams[size_t(s)]);
  }
  Tensor out = make(values, {n}, ScalarType::Bool);
  if (n == 0) {
    return out;
  }
  params.out = reinterpret_cast<uint8_t*>(out.mutable_data_ptr<bool>());
  Tensor keys = make(values, {n}, params.dtype == DType::f64 ? ScalarType::Long : ScalarType::Int);
  params.keys = keys.mutable_data_ptr();
  find_bounds(params, n, k, rate);
  torch::stable::parallel_for(0, n, kReadGrain, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(topk_write_range, params, begin, end);
  });
  return out;
}

Tensor mask_positions(const Tensor& mask, int64_t count) {
  constexpr int64_t kPart = 1 << 14;
  check_device(mask, "mask");
  STD_TORCH_CHECK(count >= 0, "count is ", count, ", expected a count");
  const Tensor bits = torch::stable::contiguous(mask);
  const int64_t n = bits.numel();
  Tensor out = make(mask, {count}, ScalarType::Long);
  PositionsParams params;
  params.mask = mask_of(bits, n);
  params.out = out.mutable_data_ptr<int64_t>();
  const int64_t parts = (n + kPart - 1) / kPart;
  std::vector<int64_t> first(size_t(parts) + 1, 0);
  const auto for_parts = [&](const auto& f) {
    if (parts > 0) {
      torch::stable::parallel_for(0, parts, 4, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part) {
          f(part, part * kPart, std::min((part + 1) * kPart, n));
        }
      });
    }
  };
  for_parts([&](int64_t part, int64_t begin, int64_t end) {
    first[size_t(part) + 1] = KGREC_ISA_CALL(positions_count, params, begin, end);
  });
  for (size_t part = 0; part < size_t(parts); ++part) {
    first[part + 1] += first[part];
  }
  for_parts([&](int64_t part, int64_t begin, int64_t end) {
    const int64_t at = first[size_t(part)];
    const int64_t last = std::min(first[size_t(part) + 1], count);
    if (at < last) {
      KGREC_ISA_CALL(positions_write, params, begin, end, at, last);
    }
  });
  std::fill(params.out + std::min(first.back(), count), params.out + count, int64_t{-1});
  return out;
}

}  // namespace
}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("gumbel_noise", TORCH_BOX(&kgrec::cpu::gumbel_noise));
  m.impl("topk_mask", TORCH_BOX(&kgrec::cpu::topk_mask));
  m.impl("mask_positions", TORCH_BOX(&kgrec::cpu::mask_positions));
}
