#include "ops/repack.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "kernels/variants.h"
#include "layout/coded_blocks.h"

namespace dali {

namespace {

template <class Type>
bool repack_tile(const Matrix& matrix, const uint8_t* raw, size_t row_bytes, int rows, uint8_t* tile) {
    constexpr int columns = block_columns(Type::format);
    static constexpr uint8_t zeros[Type::bytes] = {};  // rows of padding
    bool finite = true;
    for (int block = 0; block < matrix.columns / columns; block++) {
        uint8_t* plane = tile + size_t(block) * block_scale_bytes(Type::format);
        uint8_t* lines = tile + matrix.plane_bytes + size_t(block) * (columns / GROUP) * group_bytes(Type::format);
        for (int row = 0; row < TILE_ROWS; row++) {
            const uint8_t* from = row < rows ? raw + row * row_bytes + size_t(block) * Type::bytes : zeros;
            finite &= Type::move(from, {plane, lines, row});
        }
    }
    return finite;
}

struct BlockType {
    const char* name;
    Format format;
    int bytes;
    bool (*repack_tile)(const Matrix& matrix, const uint8_t* raw, size_t row_bytes, int rows, uint8_t* tile);
};

template <class Type>
constexpr BlockType block_type(const char* name) {
    return {name, Type::format, Type::bytes, repack_tile<Type>};
}

const BlockType& type_of(const std::string& name) {
    static constexpr BlockType types[] = {
        block_type<Q8_0>("Q8_0"), block_type<Q4_0>("Q4_0"), block_type<Mxfp4>("MXFP4"), block_type<Q4_1>("Q4_1"),
        block_type<Q5_0>("Q5_0"), block_type<Q5_1>("Q5_1"), block_type<Q4_K>("Q4_K"),   block_type<Q5_K>("Q5_K"),
        block_type<Q6_K>("Q6_K"), block_type<Q3_K>("Q3_K"), block_type<Q2_K>("Q2_K"),   block_type<Iq4_Nl>("IQ4_NL"),
        block_type<Iq4_Xs>("IQ4_XS"), block_type<Nvfp4>("NVFP4"), block_type<Tq1_0>("TQ1_0"), block_type<Tq2_0>("TQ2_0"),
        block_type<Iq3_Xxs>("IQ3_XXS"), block_type<Iq3_S>("IQ3_S"), block_type<Iq2_Xxs>("IQ2_XXS"), block_type<Iq2_Xs>("IQ2_XS"),
        block_type<Iq2_S>("IQ2_S"), block_type<Iq1_S>("IQ1_S"), block_type<Iq1_M>("IQ1_M"),
    };
    for (const BlockType& type : types)
        if (name == type.name) return type;
    throw std::invalid_argument("no repacking of " + name);
}

}  // namespace

bool repack(const Matrix& matrix, const std::string& name, const uint8_t* raw, size_t row_bytes, uint8_t* packed) {
    const BlockType& type = type_of(name);
    if (matrix.format != type.format) throw std::invalid_argument(name + " has another format");
    bool finite = true;
    for (int tile = 0; tile < matrix.tiles(); tile++) {
        const int rows = std::min(TILE_ROWS, matrix.rows - tile * TILE_ROWS);
        finite &= type.repack_tile(matrix, raw + size_t(tile) * TILE_ROWS * row_bytes, row_bytes, rows, packed + tile * matrix.tile_bytes);
    }
    return finite;
}

void dequantize_blocks(const std::string& name, const uint8_t* raw, size_t count, float* out) {
    const BlockType& type = type_of(name);
    const Matrix matrix(type.format, TILE_ROWS, block_columns(type.format));  // a block a row
    std::vector<uint8_t> tile(matrix.bytes());
    std::vector<float> values(size_t(matrix.columns) * TILE_ROWS);
    for (size_t block = 0; block < count; block += TILE_ROWS) {
        const int rows = int(std::min<size_t>(TILE_ROWS, count - block));
        type.repack_tile(matrix, raw + block * type.bytes, type.bytes, rows, tile.data());
        current_variant().values[int(type.format)](tile.data(), matrix.plane_bytes, matrix.columns, values.data());
        for (int row = 0; row < rows; row++)
            for (int c = 0; c < matrix.columns; c++) out[(block + row) * matrix.columns + c] = values[size_t(c) * TILE_ROWS + row];
    }
}

void rows_of(const Matrix& matrix, const uint8_t* packed, int columns, const int64_t* rows, size_t count, float* out) {
    std::vector<float> values(size_t(matrix.columns) * TILE_ROWS);
    for (size_t i = 0; i < count; i++) {
        const uint8_t* tile = packed + rows[i] / TILE_ROWS * matrix.tile_bytes;
        current_variant().values[int(matrix.format)](tile, matrix.plane_bytes, matrix.columns, values.data());
        const int lane = int(rows[i] % TILE_ROWS);
        for (int c = 0; c < columns; c++) out[i * columns + c] = values[size_t(c) * TILE_ROWS + lane];
    }
}

}  // namespace dali
