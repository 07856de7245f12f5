// Cuts memory into parts, each aligned as the driver's own allocations are. Cutting from 0 tells how much memory that takes.
#pragma once

#include "calls.h"
#include "gpu/device.h"
#include "layout/format.h"

namespace dali::gpu {

constexpr size_t ALIGNED = 256;

class Cut {
  public:
    template <class T>
    T* take(size_t count) {
        T* at = reinterpret_cast<T*>(base_ + used_);
        used_ = round_up(used_ + count * sizeof(T), ALIGNED);
        return at;
    }
    void begin(uint64_t base) { base_ = base, used_ = 0; }
    size_t bytes() const { return used_; }

  private:
    uint64_t base_ = 0;
    size_t used_ = 0;
};

// Rows of activations, as integers and as floats.
inline gpu::Panel cut_panel(Cut& cut, size_t rows, int columns) {
    const size_t groups = size_t(columns) / GROUP;
    return {cut.take<int8_t>(rows * columns), cut.take<float>(rows * groups), cut.take<uint32_t>(rows * groups), cut.take<float>(rows * columns), columns};
}

inline gpu::Matrix matrix_of(const dali::Matrix& matrix, size_t at = 0) {
    return {int64_t(at), matrix.rows, matrix.columns, int(matrix.plane_bytes)};
}

inline int padded_columns(int columns) { return int(round_up(size_t(columns), 256)); }  // enough for any format

}  // namespace dali::gpu
