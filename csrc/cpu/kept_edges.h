// The unmasked edges of a part of the work. Included by foreach_isa.h after shapes.h, inside the
// namespace of each instruction set.

// Whether edge e is kept. In column order a mask may lie in row order.
KGREC_INLINE bool is_kept(const OrderView& order, int64_t e) {
  return order.mask == nullptr || order.mask[order.mask_by_pos ? order.pos[e] : e] != 0;
}

// Finds them some hundred at a time, without a branch: a random mask makes one that every kernel
// would have to wait for at each edge.
class KeptEdges {
 public:
  KGREC_INLINE explicit KeptEdges(const OrderView& order) : order_(order) {}

  // f(e, ahead) for every unmasked edge of [begin, end); `ahead` is one that comes soon after e and
  // whose operands are worth asking for. Calls go through ascending ranges. Returns their number.
  template <class F>
  KGREC_INLINE int64_t each(int64_t begin, int64_t end, F&& f) {
    constexpr int kAhead = 12;
    if (order_.mask == nullptr) {
      for (int64_t e = begin; e < end; ++e) {
        f(e, std::min<int64_t>(e + kAhead, order_.num_edges - 1));
      }
      return end - begin;
    }
    int64_t found = 0;
    while (begin < end) {
      if (begin >= tile_end_) {
        fill(begin);
      }
      const int64_t stop = std::min(end, tile_end_);
      for (; next_ < size_ && tile_ + list_[next_] < stop; ++next_) {
        f(tile_ + list_[next_], tile_ + list_[std::min(next_ + kAhead, size_ - 1)]);
        ++found;
      }
      begin = stop;
    }
    return found;
  }

 private:
  static constexpr int kTile = 1024;

  KGREC_INLINE void fill(int64_t begin) {
    tile_ = begin;
    tile_end_ = std::min(begin + kTile, order_.num_edges);
    next_ = 0;
    const int count = int(tile_end_ - tile_);
    int size = 0;
    if (order_.mask_by_pos) {
      const int32_t* pos = order_.pos + begin;
      for (int i = 0; i < count; ++i) {
        list_[size] = uint16_t(i);
        size += order_.mask[pos[i]] != 0;
      }
    } else {
      const uint8_t* mask = order_.mask + begin;
      for (int i = 0; i < count; ++i) {
        list_[size] = uint16_t(i);
        size += mask[i] != 0;
      }
    }
    size_ = size;
  }

  const OrderView& order_;
  int64_t tile_ = 0, tile_end_ = 0;
  int next_ = 0, size_ = 0;
  uint16_t list_[kTile];
};

// Brings a row of x towards the first level of the cache.
template <class S, class X>
KGREC_INLINE void prefetch_row(const S& shape, const X* row) {
  const char* bytes = reinterpret_cast<const char*>(row);
  for (int64_t at = 0; at < shape.width * int64_t(sizeof(X)); at += 64) {
    __builtin_prefetch(bytes + at);
  }
}

// Numbers of the unmasked edges of [begin, end), [n, heads] side by side at the start of `numbers`
// [end - begin, heads], are moved to the places of their edges; masked ones get 0.
template <class A>
KGREC_INLINE void spread_kept(
    const OrderView& order, int64_t begin, int64_t end, int heads, int64_t found, A* numbers) {
  if (found == end - begin) {
    return;
  }
  // From the last one on: nothing is overwritten that is still to be read.
  for (int64_t e = end - 1, from = found; e >= begin; --e) {
    const bool kept = is_kept(order, e);
    from -= kept;
    for (int k = 0; k < heads; ++k) {
      const A number = numbers[from * heads + k];
      numbers[(e - begin) * heads + k] = kept ? number : A(0);
    }
  }
}
