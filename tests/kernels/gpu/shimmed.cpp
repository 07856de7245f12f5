// The GPU's kernels for one layout (see experts.cuh), run on the CPU. Each takes its call as the driver would hand it over, and says how
// many bytes that has.
#include "attention.cuh"
#include "experts.cuh"
#include "join.cuh"
#include "norm.cuh"
#include "post.cuh"
#define FORMAT UP
#include "linear.cuh"

#define DALI_RUN(kernel, Call)                                                 \
    extern "C" void run_##kernel(const dali::gpu::Call* call, int64_t warps) { \
        shim::run(warps, [&] { dali::gpu::kernel(*call); });                   \
    }                                                                          \
    extern "C" int64_t bytes_##kernel() { return sizeof(dali::gpu::Call); }

DALI_RUN(gather, GatherCall)
DALI_RUN(inner, ExpertsCall)
DALI_RUN(down, ExpertsCall)
DALI_RUN(join, JoinCall)
DALI_RUN(gather_rows, GatherCall)
DALI_RUN(linear, LinearCall)
DALI_RUN(rms_norm, NormCall)
DALI_RUN(post, PostCall)
DALI_RUN(keep, AttendCall)
DALI_RUN(attend, AttendCall)
DALI_RUN(merge, AttendCall)
extern "C" const int quantized_up = dali::gpu::is_quantized(UP), quantized_down = dali::gpu::is_quantized(DOWN);  // which panels the kernels use
