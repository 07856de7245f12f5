#include "layout/grids.h"

#include <cstring>
#include <set>
#include <stdexcept>
#include <vector>

namespace dali {

Grid grids[GRIDS];

void set_grid(Format format, const std::string& rows) {
    const int columns = is_grid(format) ? code_columns(format) : 0;
    if (!columns || rows.size() != size_t(codes(format)) * columns) throw std::invalid_argument("a table of another format");
    const int8_t* weights = reinterpret_cast<const int8_t*>(rows.data());
    const std::set<int> distinct(weights, weights + rows.size());
    const bool moved = format >= Format::iq1_s;
    const int width = columns == 4 ? 3 : 2;  // bits of a place
    if (distinct.size() > size_t(1) << width) throw std::invalid_argument("more different weights than any grid has");
    const std::vector<int> values(distinct.begin(), distinct.end());
    const auto value = [&](int place) {
        if (place >= int(values.size())) return uint8_t(0);
        return uint8_t(zero_point(format) + values[place] * (moved ? 8 : 1));
    };
    Grid& grid = grids[grid_of(format)];
    for (int i = 0; i < 16; i++) grid.values[i] = moved ? uint8_t(value(i & 3) + (i & 4 ? -1 : 1)) : value(i);
    for (int field = 0; field < 3; field++)
        for (int i = 0; i < 64; i++) grid.fields[field][i] = uint8_t(value(i >> (width * field) & ((1 << width) - 1)) + moved);
    const int in_byte = columns / 2;
    for (int code = 0; code < codes(format); code++) {
        uint8_t bytes[4] = {};
        grid.places[0][code] = grid.places[1][code] = 0;
        for (int c = 0; c < columns; c++) {
            const int place = int(std::distance(distinct.begin(), distinct.find(weights[code * columns + c])));
            grid.places[c / in_byte][code] |= uint8_t(place << (width * (c % in_byte)));
            bytes[c % 4] |= columns == 4 ? value(place) : uint8_t(place << (4 * (c / 4)));
        }
        std::memcpy(&grid.words[code], bytes, 4);
        if (moved) grid.words[MOST_CODES + code] = grid.words[code] | 0x44444444u;
    }
}

}  // namespace dali
