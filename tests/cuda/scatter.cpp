#include "cuda/scatter.cuh"

#include "entry.h"

KGREC_ENTRY(scatter_pointers) {
  kgrec::cuda::ScatterPointersParams p;
  p.rows = args.size("sorted");
  p.size = args.size("ptr") - 1;
  p.sorted = args.in<int64_t>("sorted");
  p.ptr = args.out<int64_t>("ptr");
  kgrec::cuda::launches_scatter_pointers(p, args.launcher);
}
