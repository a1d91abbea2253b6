// Selection without sorting on CUDA: noise, the k largest, positions of set bits.
#pragma once

#include <cstdint>

#include "common/types.h"
#include "cuda/launch.h"

namespace kgrec::cuda {

struct GumbelParams {
  const int64_t* rng = nullptr;  // seed, step
  int64_t stream = 0;            // of random numbers
  int64_t n = 0;
  float* out = nullptr;  // [n], 16-byte aligned
};

void launch_gumbel(const GumbelParams& params, cudaStream_t stream);

constexpr int kMaxStreams = 4;
constexpr int kDigitBits = 11;  // of a key or an id, looked at in one pass
constexpr int kBins = 1 << kDigitBits;
constexpr int kGroup = 4;  // consecutive elements of a thread: the words of a Philox block

inline int key_bits(DType dtype) {
  return dtype == DType::f64 ? 64 : 32;
}

// Passes over digits of the ids below n.
inline int id_passes(int64_t n) {
  int bits = 1;
  while (bits < 63 && (n - 1) >> bits != 0) {
    ++bits;
  }
  return (bits + kDigitBits - 1) / kDigitBits;
}

inline int key_passes(DType dtype) {
  return (key_bits(dtype) + kDigitBits - 1) / kDigitBits;
}

// What a pass has found out; the next ones start from it.
struct SelectState {
  uint64_t prefix;  // the higher bits of the key that comes last, or of the id among equal keys
  int64_t left;     // how many are still to be taken, of those with this prefix
  uint64_t bound;   // taken: keys above it, and those equal to it with ids up to the cut
  int64_t cut;
  int64_t done;  // whether bound and cut are final
};

// A key is an unsigned integer of 4 bytes (8 for double) that is larger where a value comes
// earlier; 0 where the mask is not set, and nowhere else.
struct TopkParams {
  DType dtype = DType::f32;
  int64_t n = 0;
  const void* values = nullptr;   // [n]
  const uint8_t* mask = nullptr;  // [n] or null
  bool largest = true;
  int64_t k = -1;   // or -1:
  double rate = 0;  // k as a share of the set bits
  const int64_t* rng = nullptr;
  int64_t streams[kMaxStreams] = {};
  int num_streams = 0;
  // Workspaces, all 16-byte aligned.
  void* keys = nullptr;                      // [n, rounded up to groups]
  unsigned long long* histograms = nullptr;  // [key passes + id passes, kBins]
  SelectState* states = nullptr;             // [key passes + id passes]
  uint8_t* out = nullptr;                    // [n], 4-byte aligned
  // The pass of a launch, and where the digit stands in a key or an id.
  int pass = 0;
  int passes = 0;
  int shift = 0;
  int bits = 0;
  bool by_id = false;
};

void launch_topk(const TopkParams& params, cudaStream_t stream);

// Bits of a mask that a block takes at a time, 16 a thread.
constexpr int kThreadBits = 16;
constexpr int kTileBits = kBlockThreads * kThreadBits;

struct PositionsParams {
  const uint8_t* mask = nullptr;
  int64_t n = 0;
  int64_t tiles = 0;
  int64_t* first = nullptr;  // [tiles + 1]: set bits of a tile, then of all tiles before
  int64_t count = 0;
  int64_t* out = nullptr;  // [count]
};

void launch_positions(const PositionsParams& params, cudaStream_t stream);

}  // namespace kgrec::cuda
