#include "plan/dependencies.h"

#include <nanobind/stl/optional.h>

#include "bind/bind.h"

namespace dali {

void bind_dependencies(nb::module_& m) {
    nb::class_<Issued>(m, "Issued");
    nb::class_<Dependencies>(m, "Dependencies")
        .def(nb::init<std::optional<int64_t>>(), nb::arg("drop").none() = nb::none())
        .def("derive", &Dependencies::derive)
        .def("before", &Dependencies::before)
        .def("host_waited", &Dependencies::host_waited)
        .def("forget", &Dependencies::forget)
        .def_prop_ro("derived", &Dependencies::derived)
        .def_prop_ro("remembered", &Dependencies::remembered);
}

}  // namespace dali
