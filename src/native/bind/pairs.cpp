#include "ops/pairs.h"

#include "bind/bind.h"

namespace dali {

void bind_pairs(nb::module_& m) {
    m.def("count_pairs", [](uintptr_t ids, int64_t pairs, int64_t experts) {
        return count_pairs(pointer<const int64_t>(ids), pairs, experts);
    });
    m.def("order_pairs", [](uintptr_t ids, int64_t pairs, int64_t experts, const std::vector<int64_t>& order, uintptr_t out) {
        const int64_t* from = pointer<const int64_t>(ids);
        return order_pairs(from, pairs, count_pairs(from, pairs, experts), order, pointer<int64_t>(out));
    });
}

}  // namespace dali
