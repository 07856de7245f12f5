// The GPU's kernels of one module, run on the CPU: a layout's experts, or linears of one format, or what all share. Each takes its call
// as the driver would hand it over, and says how many bytes that has. With EVERY_FORMAT, linears of all formats in one library.
#if defined(UP)
#include "experts.cuh"
#include "join.cuh"
#include "post.cuh"
#elif defined(FORMAT)
#include "linear.cuh"
#ifdef EVERY_FORMAT
#include <utility>
#endif
#else
#include "common.cuh"
#endif

#define DALI_RUN(kernel, Call)                                                 \
    extern "C" void run_##kernel(const dali::gpu::Call* call, int64_t warps) { \
        shim::run(warps, [&] { dali::gpu::kernel(*call); });                   \
    }                                                                          \
    extern "C" int64_t bytes_##kernel() { return sizeof(dali::gpu::Call); }

#if defined(UP)
DALI_RUN(gather, GatherCall)
DALI_RUN(inner, ExpertsCall)
DALI_RUN(down, ExpertsCall)
DALI_RUN(join, JoinCall)
DALI_RUN(post, PostCall)
extern "C" const int quantized_up = dali::gpu::is_quantized(UP), quantized_down = dali::gpu::is_quantized(DOWN);  // which panels the kernels use
#elif defined(FORMAT)
DALI_RUN(gather_rows, GatherCall)
DALI_RUN(linear, LinearCall)
#else
DALI_RUN(add_norm, AddNormCall)
DALI_RUN(attend, AttendCall)
DALI_RUN(collect_highest, HighestCall)
DALI_RUN(highest_of_pieces, HighestCall)
DALI_RUN(highest_of_rows, HighestCall)
DALI_RUN(join, JoinCall)
DALI_RUN(merge, AttendCall)
DALI_RUN(post, PostCall)
DALI_RUN(gate_up, GateUpCall)
DALI_RUN(route_products, RouteCall)
DALI_RUN(route_choose, RouteCall)
DALI_RUN(share, ShareCall)
DALI_RUN(rms_norm, NormCall)
DALI_RUN(turn, TurnCall)
#endif

#ifdef EVERY_FORMAT
template <int... formats>
static void run_format(int format, const dali::gpu::LinearCall& call, std::integer_sequence<int, formats...>) {
    using Kernel = void (*)(const dali::gpu::LinearCall&);
    static constexpr Kernel kernels[] = {dali::gpu::multiply_products<formats, PASSES>...};
    kernels[format](call);
}
extern "C" void run_linear_of(const dali::gpu::LinearCall* call, int64_t warps, int format) {
    shim::run(warps, [&] { run_format(format, *call, std::make_integer_sequence<int, EVERY_FORMAT>{}); });
}
#endif
