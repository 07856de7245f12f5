// GGUF's blocks: into packed tiles, and decoded.
#include "bind/bind.h"
#include "layout/grids.h"
#include "ops/repack.h"

namespace dali {

void bind_blocks(nb::module_& m) {
    m.def("set_grid", [](const std::string& format, const nb::bytes& rows) {
        set_grid(format_of(format), std::string(rows.c_str(), rows.size()));
    });
    m.def("repack", [](const Matrix& matrix, const std::string& type, uintptr_t raw, size_t row_bytes, uintptr_t packed) {
        nb::gil_scoped_release unlocked;
        return repack(matrix, type, pointer<const uint8_t>(raw), row_bytes, pointer<uint8_t>(packed));
    });
    m.def("rows_of", [](const Matrix& matrix, uintptr_t packed, int columns, uintptr_t rows, size_t count, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        rows_of(matrix, pointer<const uint8_t>(packed), columns, pointer<const int64_t>(rows), count, pointer<float>(out));
    });
    m.def("dequantize_blocks", [](const std::string& type, uintptr_t raw, size_t count, uintptr_t out) {
        nb::gil_scoped_release unlocked;
        dequantize_blocks(type, pointer<const uint8_t>(raw), count, pointer<float>(out));
    });
}

}  // namespace dali
