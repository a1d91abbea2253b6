#include "cpu/selection.h"

#include <cmath>
#include <functional>
#include <tuple>

#include "cpu/binding.h"
#include "cpu/dispatch.h"

#define KGREC_KERNELS "cpu/selection_kernels.h"
#include "cpu/foreach_isa.h"

namespace kgrec::cpu {
namespace {

// Elements that are worth a thread: with noise to draw, and where memory is only read.
constexpr int64_t kDrawGrain = 1 << 14;
constexpr int64_t kReadGrain = 1 << 16;
// A sample: runs of elements, at most so many, and no more than one of so many elements.
constexpr int64_t kSampleRuns = 64;
constexpr int64_t kSampleRun = 128;
constexpr int64_t kSampleShare = 16;
// By how many standard deviations a guess from it keeps off.
constexpr double kDeviations = 3.5;

Tensor gumbel_noise(int64_t n, const Tensor& rng, int64_t stream) {
  STD_TORCH_CHECK(n >= 0, "n is ", n, ", expected a count");
  Tensor out = make(rng, {n}, ScalarType::Float);
  GumbelParams params;
  params.draw = draw_of(rng, stream);
  params.out = out.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, n, kDrawGrain, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(gumbel_range, params, begin, end);
  });
  return out;
}

int64_t parts_of(int64_t n) {
  return (n + kSelectPart - 1) / kSelectPart;
}

int64_t count_set(const uint8_t* mask, int64_t n) {
  PositionsParams params;
  params.mask = mask;
  std::atomic<int64_t> count{0};
  torch::stable::parallel_for(0, n, kReadGrain, [&](int64_t begin, int64_t end) {
    count += KGREC_ISA_CALL(positions_count, params, begin, end);
  });
  return count;
}

// Narrows down where the key of the element that comes last, the k-th of `set`, will be found: by
// the keys of runs of elements, which stand all over the place.
void guess_bracket(TopkParams& p, int64_t k, int64_t set) {
  const int64_t runs = std::min(kSampleRuns, p.n / (kSampleRun * kSampleShare));
  std::vector<uint64_t> sample(size_t(runs * kSampleRun) + 1);
  int64_t count = 0;
  for (int64_t run = 0; run < runs; ++run) {
    const int64_t begin = p.n / kSampleRun * run / runs * kSampleRun;
    count += KGREC_ISA_CALL(topk_sample, p, begin, begin + kSampleRun, sample.data() + count);
  }
  if (count == 0) {
    return;
  }
  const double share = double(k) / double(set);
  const double expected = share * double(count);
  const double deviation = std::sqrt(expected * (1 - share));
  const int64_t above = int64_t(expected - kDeviations * deviation) - 1;
  const int64_t below = int64_t(expected + kDeviations * deviation) + 1;
  auto last = sample.begin() + count;
  const auto largest = [&](int64_t rank) {  // of what stands before `last`
    const auto place = sample.begin() + rank;
    std::nth_element(sample.begin(), place, last, std::greater<>());
    last = place;
    return *place;
  };
  if (below < count) {
    p.low = largest(below) - 1;
  }
  if (above >= 0) {
    p.high = largest(above);
  }
}

// Finds the bounds for the first `left` of the undecided: digit by digit, from the highest on
// that differs between them, the key of the one that comes last.
void find_bounds(TopkParams& p, int64_t parts, int64_t left) {
  p.cut = p.n;
  p.bound_before = p.bound_after = p.high;
  if (left == 0) {
    return;
  }
  std::vector<int64_t> histogram(kBins);
  p.histogram = histogram.data();
  p.shift = 0;
  while (p.shift < 64 && (p.low + 1) >> p.shift != p.high >> p.shift) {
    ++p.shift;
  }
  p.above = p.shift < 64 ? ~uint64_t{0} << p.shift : 0;
  p.prefix = p.high & p.above;
  while (p.shift > 0) {
    const int bits = std::min(p.shift, kDigitBits);
    p.shift -= bits;
    p.digit = (uint64_t{1} << bits) - 1;
    std::fill(histogram.begin(), histogram.end(), 0);
    constexpr int64_t kCountable = (int64_t{1} << 30) / kSelectPart;  // by counters of 32 bits
    torch::stable::parallel_for(0, parts, 4, [&](int64_t first, int64_t last) {
      for (; first < last; first += kCountable) {
        KGREC_ISA_CALL(topk_count_parts, p, first, std::min(first + kCountable, last));
      }
    });
    int64_t digit = kBins - 1;
    for (; histogram[size_t(digit)] < left; --digit) {
      left -= histogram[size_t(digit)];
    }
    p.prefix |= uint64_t(digit) << p.shift;
    p.above |= p.digit << p.shift;
    if (histogram[size_t(digit)] == left) {  // all with this prefix are taken
      p.bound_before = p.bound_after = std::max<uint64_t>(p.prefix, 1) - 1;
      return;
    }
  }
  p.bound_before = p.prefix - 1;  // perhaps not all of the equal ones
  p.bound_after = p.prefix;
  p.cut = KGREC_ISA_CALL(topk_position_after, p, parts, left);
}

// Writes p.out: a guess, all elements by it, and those that it leaves undecided.
void select(TopkParams& p, std::optional<int64_t> wanted, std::optional<double> rate) {
  const int64_t set = p.mask == nullptr ? p.n : count_set(p.mask, p.n);
  const double share = rate ? std::floor(*rate * static_cast<double>(set)) : 0;
  const int64_t k = std::clamp(wanted.value_or(static_cast<int64_t>(share)), int64_t{0}, set);
  const uint64_t highest = p.dtype == DType::f64 ? ~uint64_t{0} : ~uint32_t{0};
  const int64_t parts = parts_of(p.n);
  std::vector<PartCounts> counts(static_cast<size_t>(parts));
  bool bad_index = false;
  p.counts = counts.data();
  p.bad_index = &bad_index;
  p.low = 0;
  p.high = highest;
  guess_bracket(p, k, set);
  int64_t taken = 0;
  for (;;) {
    parallel_parts(parts, [&](int64_t first, int64_t last) {
      KGREC_ISA_CALL(topk_split_parts, p, first, last);
    });
    STD_TORCH_CHECK(
        !bad_index, "index has numbers out of range, expected 0 <= index < ", p.num_values);
    taken = 0;
    int64_t undecided = 0;
    for (const PartCounts& of_part : counts) {
      taken += of_part.taken;
      undecided += of_part.undecided;
    }
    if (taken > k) {  // an unlucky guess: look on the other side of it
      p.low = p.high;
      p.high = highest;
    } else if (taken + undecided < k) {
      p.high = p.low;
      p.low = 0;
    } else {
      break;
    }
  }
  find_bounds(p, parts, k - taken);
  torch::stable::parallel_for(0, parts, 4, [&](int64_t first, int64_t last) {
    KGREC_ISA_CALL(topk_write_parts, p, first, last);
  });
}

Tensor topk_mask(
    const Tensor& values, std::optional<int64_t> k, std::optional<double> rate, bool largest,
    const std::optional<Tensor>& mask, const std::optional<Tensor>& rng,
    std::vector<int64_t> streams, const std::optional<Tensor>& index) {
  check_device(values, "values");
  STD_TORCH_CHECK(k.has_value() != rate.has_value(), "k or rate is expected, and not both");
  STD_TORCH_CHECK(streams.size() <= kMaxStreams, "streams has more than ", kMaxStreams, " numbers");
  STD_TORCH_CHECK(streams.empty() || rng.has_value(), "rng is expected with streams");
  TopkParams params;
  params.dtype = dtype_of(values, "values");
  params.num_values = values.numel();
  const Tensor source = torch::stable::contiguous(values);
  params.values = source.const_data_ptr();
  params.n = index ? index->numel() : params.num_values;
  const Tensor ids = index ? torch::stable::contiguous(*index) : source;
  params.index = index ? flat<int32_t>(ids, "index", params.n) : nullptr;
  const Tensor bits = mask ? torch::stable::contiguous(*mask) : source;
  params.mask = mask ? mask_of(bits, params.n) : nullptr;
  params.largest = largest;
  params.num_streams = static_cast<int>(streams.size());
  const Tensor seed_step = rng ? torch::stable::contiguous(*rng) : source;
  for (int s = 0; s < params.num_streams; ++s) {
    params.draws[s] = draw_of(seed_step, streams[size_t(s)]);
  }
  Tensor out = make(values, {params.n}, ScalarType::Bool);
  if (params.n == 0) {
    return out;
  }
  params.out = reinterpret_cast<uint8_t*>(out.mutable_data_ptr<bool>());
  const int64_t room = params.n + kSelectSlack;
  Tensor keys =
      make(values, {room}, params.dtype == DType::f64 ? ScalarType::Long : ScalarType::Int);
  params.keys = keys.mutable_data_ptr();
  select(params, k, rate);
  return out;
}

// The first `count` set bits of `bits`, contiguous, and -1 in the places that are left.
void write_positions(const Tensor& bits, int64_t count, int64_t* out) {
  constexpr int64_t kPart = 1 << 14;
  const int64_t n = bits.numel();
  PositionsParams params;
  params.mask = mask_of(bits, n);
  params.out = out;
  const int64_t parts = (n + kPart - 1) / kPart;
  std::vector<int64_t> first(size_t(parts) + 1, 0);
  const auto for_parts = [&](const auto& f) {
    torch::stable::parallel_for(0, parts, 4, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        f(part, part * kPart, std::min((part + 1) * kPart, n));
      }
    });
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
  std::fill(out + std::min(first.back(), count), out + count, int64_t{-1});
}

Tensor mask_positions(const Tensor& mask, int64_t count) {
  check_device(mask, "mask");
  STD_TORCH_CHECK(count >= 0, "count is ", count, ", expected a count");
  Tensor out = make(mask, {count}, ScalarType::Long);
  write_positions(torch::stable::contiguous(mask), count, out.mutable_data_ptr<int64_t>());
  return out;
}

// Slots of the set bits of `top` and of the elements `drawn`, as many: what is in them, the weight
// of each, and all that is in any.
std::tuple<Tensor, Tensor, Tensor> masked_slots(const Tensor& top, const Tensor& drawn_any) {
  check_device(top, "top");
  const Tensor bits = torch::stable::contiguous(top);
  const Tensor drawn = torch::stable::contiguous(drawn_any);
  const int64_t n = bits.numel(), count = drawn.numel();
  const int64_t* element = flat<int64_t>(drawn, "drawn", count);
  Tensor slots = make(top, {2 * count}, ScalarType::Long);
  Tensor weight = make(top, {2 * count}, ScalarType::Float);
  Tensor in_any = make(top, {n}, ScalarType::Bool);
  int64_t* slot = slots.mutable_data_ptr<int64_t>();
  write_positions(bits, count, slot);
  std::copy_n(element, count, slot + count);
  const uint8_t* in_top = mask_of(bits, n);
  uint8_t* any = reinterpret_cast<uint8_t*>(in_any.mutable_data_ptr<bool>());
  std::copy_n(in_top, n, any);
  float* weights = weight.mutable_data_ptr<float>();
  std::fill_n(weights, count, 1.0f);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t e = element[i];
    STD_TORCH_CHECK(e >= 0 && e < n, "drawn[", i, "] is ", e, ", expected 0 <= drawn < ", n);
    weights[count + i] = in_top[e] != 0 ? 0.0f : 1.0f;
    any[e] = 1;
  }
  return {slots, weight, in_any};
}

}  // namespace
}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("gumbel_noise", TORCH_BOX(&kgrec::cpu::gumbel_noise));
  m.impl("topk_mask", TORCH_BOX(&kgrec::cpu::topk_mask));
  m.impl("mask_positions", TORCH_BOX(&kgrec::cpu::mask_positions));
  m.impl("masked_slots", TORCH_BOX(&kgrec::cpu::masked_slots));
}
