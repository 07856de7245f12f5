#include "layout/grids.h"

#include <cstring>
#include <set>
#include <stdexcept>
#include <vector>

namespace dali {

Grid grids[GRIDS];

namespace {

// Where the lowest six bits of a byte have a weight's place, and its sign: CodesByByte puts them there. Of codes for 4 columns, and for 8.
struct Field {
    int place, sign;
};
constexpr Field FIELDS[2][4] = {{{0, 3}, {3, 0}, {0, 5}, {3, 2}}, {{0, 4}, {2, 5}, {4, 2}, {4, 1}}};

}  // namespace

void set_grid(Format format, const std::string& rows) {
    const int columns = is_grid(format) ? code_columns(format) : 0;
    if (!columns || rows.size() != size_t(codes(format)) * columns) throw std::invalid_argument("a table of another format");
    const int8_t* weights = reinterpret_cast<const int8_t*>(rows.data());
    const std::set<int> distinct(weights, weights + rows.size());
    const bool moved = format >= Format::iq1_s;
    const int width = columns == 4 ? 3 : 2;  // bits of a place
    if (distinct.size() > size_t(1) << width) throw std::invalid_argument("more different weights than any grid has");
    const std::vector<int> values(distinct.begin(), distinct.end());
    const auto value = [&](int place, bool minus) {
        const int of_place = place < int(values.size()) ? values[place] : 0;
        return uint8_t(zero_point(format) + (moved ? 8 * of_place + 1 : minus ? -of_place : of_place));
    };
    Grid& grid = grids[grid_of(format)];
    for (int field = 0; field < 4; field++)
        for (int i = 0; i < 64; i++) {
            const Field& at = FIELDS[columns == 8][field];
            grid.fields[field][i] = value(i >> at.place & ((1 << width) - 1), i >> at.sign & 1);
        }
    const int in_byte = columns / 2;
    for (int code = 0; code < codes(format); code++) {
        uint8_t bytes[8] = {};
        grid.places[0][code] = grid.places[1][code] = 0;
        for (int c = 0; c < columns; c++) {
            const int place = int(std::distance(distinct.begin(), distinct.find(weights[code * columns + c])));
            grid.places[c / in_byte][code] |= uint8_t(place << (width * (c % in_byte)));
            bytes[c] = value(place, false);
        }
        if (columns == 4) std::memcpy(&grid.words[code], bytes, 4);
        else std::memcpy(&grid.pairs[code], bytes, 8);
    }
}

}  // namespace dali
