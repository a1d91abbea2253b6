// Every op of the library, by schema, and nothing else. Per-edge tensors and masks are in the order
// their names say, row order if they say none.
//
// `Tensor[] graph` is the list made by kgrec_fast.graph (in brackets: tensors):
//   [9]  row order: rowptr, head, col, rel, perm, part, slot, slot_ptr, slot_perm
//   [5]  where a pass over columns needs it, column order: colptr, row, rel, pos, part
//   [9]  on CUDA, the plan of row order: short_row, long_row, chunk, hub; run_place, run_tile,
//        run_perm, run_piece, run_sum
//   [4]  on CUDA and with the column order, its plan: short_row, long_row, chunk, hub

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(kgrec_fast, m) {
  m.def("_isa(int wanted) -> int");
  m.def("_cuda_architectures() -> int[]");

  m.def(
      "relation_attention(Tensor query, Tensor value, Tensor relation, Tensor[] graph, "
      "Tensor? row_mask, Tensor? col_mask, int num_heads, bool keep_weight, "
      "Tensor? zero_edges) -> (Tensor, Tensor, Tensor)");
  m.def(
      "relation_attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor query, Tensor value, "
      "Tensor relation, Tensor? out, Tensor lse, Tensor weight, Tensor[] graph, Tensor? row_mask, "
      "Tensor? col_mask, int num_heads, Tensor? zero_edges) -> (Tensor, Tensor, Tensor)");

  m.def("project(Tensor x, Tensor weight) -> Tensor");
  m.def(
      "project_backward_onto(Tensor(a!) grad_x, Tensor grad_out, Tensor x, Tensor weight) -> "
      "Tensor");
  m.def("projection_head(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2) -> Tensor");
  m.def(
      "projection_head_backward(Tensor grad_out, Tensor x, Tensor w1, Tensor b1, Tensor w2) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)");

  m.def(
      "rationale_scores(Tensor query, Tensor? relation, Tensor[] graph, Tensor? row_mask, "
      "int num_heads) -> (Tensor, Tensor)");

  m.def(
      "relation_mean(Tensor x, Tensor relation, Tensor[] graph, Tensor? row_mask, "
      "Tensor? col_mask) -> (Tensor, Tensor)");
  m.def(
      "relation_mean_backward(Tensor grad_out, Tensor x, Tensor relation, Tensor inverse_count, "
      "Tensor[] graph, Tensor? row_mask, Tensor? col_mask) -> (Tensor, Tensor)");
  m.def(
      "relation_mean_backward_onto(Tensor(a!) grad_x, Tensor grad_out, Tensor x, Tensor relation, "
      "Tensor inverse_count, Tensor[] graph, Tensor? row_mask, Tensor? col_mask) -> Tensor");

  m.def(
      "weighted_aggregate(Tensor x, Tensor? weight, Tensor? row_weight, Tensor[] graph, "
      "Tensor? row_mask, Tensor? col_mask, bool transpose, int out_rows) -> Tensor");
  m.def(
      "edge_dot(Tensor row_side, Tensor col_side, Tensor[] graph, Tensor? row_mask, "
      "Tensor? col_mask) -> Tensor");

  m.def(
      "edge_subgraph(Tensor[] graph, Tensor row_mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "row_subgraph(Tensor[] graph, Tensor? row_mask, Tensor ids, bool own_nodes, int num_cols, "
      "int num_relations) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");

  m.def("count_edges(Tensor rowptr, Tensor mask, Tensor? other, bool wide) -> Tensor");
  m.def("edges_of_rows(Tensor rowptr, Tensor ids, Tensor? mask, int num_edges) -> Tensor");

  m.def("segment_sum(Tensor src, Tensor ptr) -> Tensor");
  m.def("segment_mean(Tensor src, Tensor ptr) -> Tensor");
  m.def("segment_spread(Tensor per_segment, Tensor ptr, int rows, bool mean) -> Tensor");
  m.def("segment_softmax(Tensor src, Tensor ptr) -> Tensor");
  m.def("segment_softmax_backward(Tensor grad_out, Tensor out, Tensor ptr) -> Tensor");

  m.def("scatter_sum(Tensor src, Tensor index, int size) -> Tensor");
  m.def("scatter_add_(Tensor(a!) x, Tensor src, Tensor index, bool include_self) -> ()");
  m.def("scatter_softmax(Tensor src, Tensor index, int size) -> Tensor");
  m.def("scatter_softmax_backward(Tensor grad_out, Tensor out, Tensor index, int size) -> Tensor");

  m.def(
      "dropout_normalize_add(Tensor x, Tensor? residual, Tensor? rng, float p, int stream, "
      "Tensor? row_ids) -> (Tensor, Tensor, Tensor)");
  m.def(
      "dropout_normalize_add_backward(Tensor? grad_y, Tensor? grad_out, Tensor y, Tensor norm, "
      "Tensor? rng, float p, int stream, Tensor? row_ids) -> Tensor");

  m.def(
      "edge_score_means(Tensor score, Tensor[] graph, Tensor? row_mask, int num_items) -> Tensor");
  m.def(
      "topk_rows(Tensor scores, Tensor? known_ptr, Tensor? known_items, Tensor? users, int k) -> "
      "(Tensor, Tensor)");

  m.def(
      "contrast_loss(Tensor z1, Tensor z2, Tensor permutation, float tau) -> "
      "(Tensor, Tensor, Tensor)");
  m.def(
      "contrast_loss_backward(Tensor grad, Tensor z1, Tensor z2, Tensor permutation, "
      "Tensor kept_rows, Tensor inverse, float tau) -> (Tensor, Tensor)");
  m.def(
      "bpr_loss(Tensor user, Tensor positive, Tensor negative, Tensor? weight, float reg_weight, "
      "float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "bpr_loss_backward(Tensor grad, Tensor user, Tensor positive, Tensor negative, "
      "Tensor? weight, Tensor gap, Tensor total, float reg_weight, float eps) -> "
      "(Tensor, Tensor, Tensor)");
  m.def(
      "reconstruction_loss(Tensor head, Tensor tail, Tensor relation, Tensor relation_ids, "
      "Tensor? weight) -> (Tensor, Tensor, Tensor)");
  m.def(
      "reconstruction_loss_backward(Tensor grad, Tensor head, Tensor tail, Tensor relation, "
      "Tensor relation_ids, Tensor? weight, Tensor score, Tensor total) -> "
      "(Tensor, Tensor, Tensor)");

  m.def("random_bits(Tensor rng, int stream, int n) -> Tensor");
  m.def("dropout_mask(Tensor rng, int n, float p, int stream) -> Tensor");
  m.def("sample_edges(Tensor rng, int n, int k, int stream) -> Tensor");
  m.def("random_permutation(Tensor rng, int n, int count, int stream) -> Tensor");
  m.def(
      "sample_edges_per_relation(Tensor rng, Tensor rel, Tensor rank, Tensor count, float rate, "
      "int stream) -> Tensor");
  m.def(
      "sample_negatives(Tensor rng, Tensor users, Tensor ptr, Tensor gap, int num_items, "
      "int stream) -> Tensor");
  m.def("gumbel_noise(int n, Tensor rng, int stream) -> Tensor");
  m.def(
      "topk_mask(Tensor values, int? k, float? rate, bool largest, Tensor? mask, Tensor? rng, "
      "int[] streams, Tensor? index=None) -> Tensor");
  m.def("mask_positions(Tensor mask, int count) -> Tensor");
  m.def("masked_slots(Tensor top, Tensor drawn) -> (Tensor, Tensor, Tensor)");
}
