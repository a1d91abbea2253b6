#include "cuda/topk_items.cuh"

#include "entry.h"

KGREC_ENTRY(topk_rows) {
  using namespace kgrec;
  cuda::TopkRowsParams p;
  p.dtype = args.dtype();
  p.rows = args.size("scores");
  p.num_items = args.size("scores", 1);
  p.k = args.size("items", 1);
  p.scores = args.in("scores", p.dtype);
  p.known.users = args.in_or_null<int64_t>("users");
  if (args.has("known_ptr")) {
    p.known.ptr = args.in<int64_t>("known_ptr");
    p.known.num_users = args.size("known_ptr") - 1;
    p.known.num_known = args.size("known_items");
    p.known.wide = args.integer("wide") != 0;
    p.known.items = p.known.wide ? static_cast<const void*>(args.in<int64_t>("known_items"))
                                 : args.in<int32_t>("known_items");
    p.known_bits = args.workspace<uint32_t>("known_bits", p.rows * cuda::words_of(p.num_items));
  }
  p.values = args.out("values", p.dtype);
  p.items = args.out<int64_t>("items");
  cuda::launches_topk_rows(p, args.launcher);
}
