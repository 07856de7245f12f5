// The GPU: its driver, kernels and the MoE layers over it and the CPU.
#include <nanobind/stl/pair.h>

#include "bind/bind.h"
#include "gpu/layers.h"

namespace dali {

void bind_gpu(nb::module_& m) {
    nb::exception<gpu::Failure>(m, "GpuFailure", PyExc_RuntimeError);
    nb::class_<gpu::Device>(m, "GpuDevice")
        .def(nb::init<const std::string&, int>(), nb::arg("library"), nb::arg("number"), nb::call_guard<nb::gil_scoped_release>())
        .def_prop_ro("name", &gpu::Device::name)
        .def_prop_ro("sm", &gpu::Device::sm)
        .def_prop_ro("driver_version", [](const gpu::Device& self) {
            int version = 0;
            DALI_CUDA(self.driver, driver_version, &version);
            return version;
        })
        .def("memory", &gpu::Device::memory);
    nb::class_<gpu::Module>(m, "GpuModule")
        .def("__init__", [](gpu::Module* self, const gpu::Device& device, const nb::bytes& cubin) {
            device.enter();
            new (self) gpu::Module(device, cubin.c_str());
        }, nb::keep_alive<1, 2>());
    nb::class_<gpu::Registered>(m, "GpuRegistered");
    m.def("gpu_register", [](const gpu::Device& device, uintptr_t memory, size_t bytes) {
        device.enter();
        return gpu::register_host(device, pointer<void>(memory), bytes);
    }, nb::keep_alive<0, 1>(), nb::call_guard<nb::gil_scoped_release>());

    using Launch = std::tuple<std::vector<int>, std::vector<int>, bool>;  // experts, slots, whether they are fetched
    using Fetch = std::tuple<int, int, int>;                              // layer, expert, slot
    const auto fetches_of = [](const std::vector<Fetch>& all) {
        std::vector<gpu::Fetch> fetches;
        for (const auto& [layer, expert, slot] : all) fetches.push_back({layer, expert, slot});
        return fetches;
    };
    nb::class_<gpu::Layers>(m, "GpuLayers")
        .def("__init__", [](gpu::Layers* self, const gpu::Device& device, const gpu::Module& common, int experts, int top_k, int hidden,
                            int most_tokens, int most_ahead, Dtype dtype, Dtype weights_dtype, size_t slot_bytes, int slots) {
            device.enter();
            new (self) gpu::Layers(device, {experts, top_k, hidden, most_tokens, most_ahead, dtype, weights_dtype, slot_bytes, slots}, common);
        }, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>())
        .def("add", [](gpu::Layers& self, const ExpertLayout& layout, const ExpertRecords& records, const gpu::Module& few,
                       const gpu::Module& many) {
            self.add(layout, records.at, few, many);
        }, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>(), nb::keep_alive<1, 5>())
        .def("place", [=](gpu::Layers& self, const std::vector<Fetch>& fetches) {
            nb::gil_scoped_release unlocked;
            self.place(fetches_of(fetches));
        })
        .def("begin", [](gpu::Layers& self, int layer, int tokens, uint64_t x, uint64_t ids, uint64_t weights, uint64_t ahead, int ahead_count,
                         uintptr_t stream) {
            nb::gil_scoped_release unlocked;
            self.begin(layer, tokens, x, ids, weights, ahead, ahead_count, pointer<void>(stream));
        })
        // The ids, and those ahead, [count] and [ahead_count].
        .def("routing", [](gpu::Layers& self, int count, int ahead_count) {
            const int64_t* ids;
            {
                nb::gil_scoped_release unlocked;
                ids = self.routing();
            }
            return std::make_pair(std::vector<int64_t>(ids, ids + count), std::vector<int64_t>(self.ahead(), self.ahead() + ahead_count));
        })
        .def("execute", [=](gpu::Layers& self, const std::vector<int>& cpu, const std::vector<Launch>& launches,
                            const std::vector<Fetch>& fetches, uint64_t out) {
            nb::gil_scoped_release unlocked;
            gpu::StepPlan plan{cpu, {}, fetches_of(fetches)};
            for (const auto& [experts, slots, fetch] : launches) plan.launches.push_back({experts, slots, fetch});
            return self.execute(plan, out);
        })
        .def("landed", &gpu::Layers::landed)
        .def("recover", &gpu::Layers::recover, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace dali
