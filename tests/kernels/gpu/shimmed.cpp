// The GPU's kernels for one layout (see experts.cuh), run on the CPU; each takes its call as the driver would hand it over.
#include "experts.cuh"
#include "join.cuh"
#include "norm.cuh"
#define FORMAT UP
#include "linear.cuh"

#define DALI_RUN(kernel, Call)                                                                    \
    extern "C" void run_##kernel(const dali::Call* call, int64_t warps) {                         \
        shim::run(warps, [&] { dali::kernel(*call); });                                           \
    }

DALI_RUN(gather, ExpertsCall)
DALI_RUN(inner, ExpertsCall)
DALI_RUN(down, ExpertsCall)
DALI_RUN(join, JoinCall)
DALI_RUN(gather_rows, LinearCall)
DALI_RUN(linear, LinearCall)
DALI_RUN(rms_norm, NormCall)
