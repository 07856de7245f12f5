#include "bind/bind.h"

NB_MODULE(_native, m) {
    nanobind::set_leak_warnings(false);  // the command line leaves its objects to the end of the process
    // Types first: a function that takes one is described by its name.
    dali::bind_layout(m);
    dali::bind_disk(m);
    dali::bind_experts(m);
    dali::bind_linear(m);
    dali::bind_blocks(m);
    dali::bind_pairs(m);
    dali::bind_norm(m);
    dali::bind_route(m);
    dali::bind_attention(m);
    dali::bind_recurrence(m);
    dali::bind_mamba2(m);
    dali::bind_model(m);
    dali::bind_dependencies(m);
    dali::bind_two_lane(m);
    dali::bind_planner(m);
    dali::bind_threads(m);
    dali::bind_variants(m);
    dali::bind_gpu(m);
}
