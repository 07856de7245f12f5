// Tables of the formats that hold codes, as kernels look them up. Python has them (src/dali/kernels/grids.py), and sets them when the
// library is loaded.
#pragma once

#include <cstdint>
#include <string>

#include "layout/format.h"

namespace dali {

constexpr int MOST_CODES = 2048;
constexpr int GRIDS = 6;  // IQ1_M has IQ1_S'

// Weights of a grid have few different values. The place of each among them takes 3 bits where a code stands for 4 weights, else 2. All
// values here have the format's zero point in them; IQ1's are moved up by an eighth.
struct Grid {
    // For lookups of bytes (kernels/codes_by_byte.h): the places of each code's weights in two bytes, 2 in 3 bits each or 4 in 2 bits each.
    alignas(64) uint8_t places[2][MOST_CODES];
    // What six bits say of a code's weight, whose place they hold and, among the others', its sign.
    alignas(64) uint8_t fields[4][64];
    // For lookups of words (kernels/codes_by_word.h): each code's 4 weights, or 8.
    union {
        alignas(64) uint32_t words[MOST_CODES];
        uint64_t pairs[MOST_CODES];
    };
};

extern Grid grids[GRIDS];

constexpr int grid_of(Format format) { return int(format == Format::iq1_m ? Format::iq1_s : format) - int(Format::iq3_s); }
constexpr int codes(Format format) {
    constexpr int counts[GRIDS] = {512, 256, 1024, 512, 256, 2048};
    return counts[grid_of(format)];
}
constexpr int code_columns(Format format) { return bits(format) == 3 ? 4 : 8; }

// rows: int8 [codes][4 or 8], the weights of `format`'s codes. std::invalid_argument unless it has codes, and these.
void set_grid(Format format, const std::string& rows);

}  // namespace dali
