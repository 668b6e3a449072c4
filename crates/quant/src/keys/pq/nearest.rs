//! Exact search for the nearest of many short vectors.
//!
//! In two dimensions a grid over the part of the plane where most centroids are knows, for each of its cells, the
//! few that can be nearest to a point there; a search reads one cell and tries those. Elsewhere every centroid
//! is tried.

/// Cells of a grid for each centroid, about.
const CELLS_PER_CENTROID: usize = 1;

/// Candidates that a cell has room for; they are tried side by side.
const LANES: usize = 16;

/// What the rounding of distances and of a point's place in the grid can move, well above either.
const DISTANCE_SLACK: f64 = 1e-6;
const CELL_SLACK: f64 = 1e-3;

/// Brings centroids `[count, width]` into an order in which those of a neighbourhood lie close together, which
/// searches in caches gain from; in two dimensions, elsewhere they stay.
pub(super) fn order(centroids: &mut Vec<f32>, width: usize) {
    if width != 2 {
        return;
    }
    let (rows, _) = centroids.as_chunks::<2>();
    let bounds = [0, 1].map(|axis| bulk(rows, axis));
    let place = |row: &[f32; 2]| {
        let [column, row]: [u32; 2] = std::array::from_fn(|axis| {
            let (low, size) = bounds[axis];
            ((row[axis] - low) / size * 255.0) as u32
        });
        z_order(column.min(255), row.min(255))
    };
    let mut rows = rows.to_vec();
    rows.sort_by_cached_key(place);
    *centroids = rows.concat();
}

/// The place of a column and a row below 256 on the curve that fills each quarter of the plane before the next.
fn z_order(column: u32, row: u32) -> u32 {
    let spread = |mut x: u32| {
        x = (x | x << 4) & 0x0F0F;
        x = (x | x << 2) & 0x3333;
        (x | x << 1) & 0x5555
    };
    spread(column) | spread(row) << 1
}

/// Centroids that can be searched.
#[derive(Clone, Debug)]
pub(super) struct Nearest {
    width: usize,
    /// `[count, width]`.
    rows: Vec<f32>,
    /// `[width, count rounded up to whole lanes]`; what is added is infinite.
    columns: Vec<f32>,
    grid: Option<Grid>,
}

impl Nearest {
    /// Of centroids `[count, width]`, at least one and at most 2^16.
    pub(super) fn new(rows: Vec<f32>, width: usize) -> Self {
        let count = rows.len() / width;
        let padded = count.next_multiple_of(LANES);
        let column = |e: usize| {
            let rows = &rows;
            (0..padded).map(move |c| if c < count { rows[c * width + e] } else { f32::INFINITY })
        };
        let columns = (0..width).flat_map(column).collect();
        let grid = (width == 2).then(|| Grid::new(rows.as_chunks::<2>().0));
        Self { width, rows, columns, grid }
    }

    /// The centroids `[count, width]`.
    pub(super) fn into_rows(self) -> Vec<f32> {
        self.rows
    }

    /// The centroid closest to `point [width]`, the first of equals, and its squared distance.
    pub(super) fn of(&self, point: &[f32]) -> (usize, f32) {
        if let (Some(grid), &[x, y]) = (&self.grid, point) {
            let lanes = grid.candidates([x, y]);
            if lanes != CROWDED {
                let mut places = [[0.0; 2]; LANES];
                self.places_of(&lanes, &mut places);
                return first_of(&lanes, &places, [x, y]);
            }
        }
        match self.width {
            2 => self.scan::<2>(point),
            4 => self.scan::<4>(point),
            _ => self.scan::<8>(point),
        }
    }

    /// Where candidates in two dimensions are.
    #[inline]
    fn places_of(&self, lanes: &[u16; LANES], places: &mut [[f32; 2]; LANES]) {
        let (rows, _) = self.rows.as_chunks::<2>();
        for (place, &c) in places.iter_mut().zip(lanes) {
            *place = rows[usize::from(c)];
        }
    }

    /// Tries every centroid.
    fn scan<const WIDTH: usize>(&self, point: &[f32]) -> (usize, f32) {
        let point: [f32; WIDTH] = std::array::from_fn(|e| point[e]);
        let stride = self.columns.len() / WIDTH;
        let columns: [&[[f32; LANES]]; WIDTH] =
            std::array::from_fn(|e| self.columns[e * stride..][..stride].as_chunks().0);
        let mut least = [f32::INFINITY; LANES];
        let mut places = [0u32; LANES];
        for block in 0..stride / LANES {
            let mut distances = [0.0f32; LANES];
            for (column, x) in columns.iter().zip(point) {
                for (distance, centroid) in distances.iter_mut().zip(&column[block]) {
                    *distance += (x - centroid) * (x - centroid);
                }
            }
            for lane in 0..LANES {
                let is_less = distances[lane] < least[lane];
                least[lane] = if is_less { distances[lane] } else { least[lane] };
                places[lane] = if is_less { block as u32 } else { places[lane] };
            }
        }
        let of_lane = |lane: usize| (places[lane] as usize * LANES + lane, least[lane]);
        let first = |a: (usize, f32), b: (usize, f32)| {
            if b.1 < a.1 || (b.1 == a.1 && b.0 < a.0) { b } else { a }
        };
        (1..LANES).map(of_lane).fold(of_lane(0), first)
    }
}

/// Writes the centroid of each group that is nearest to its part of `points [num_groups, width]`; returns the sum of
/// the squared distances. The groups are of one width.
pub(super) fn nearest_of_each(groups: &[Nearest], points: &[f32], codes: &mut [u16]) -> f32 {
    /// Groups whose loads are under way at the same time.
    const BATCH: usize = 32;
    let width = points.len() / groups.len();
    let mut sum = 0.0;
    let batches = groups.chunks(BATCH).zip(points.chunks(BATCH * width));
    for ((groups, points), codes) in batches.zip(codes.chunks_mut(BATCH)) {
        let (pairs, _) = points.as_chunks::<2>();
        // What a search reads is seldom in a near cache, so every pass here begins loads that do not wait for each
        // other: the candidates of all groups, then where these are.
        let mut lanes = [CROWDED; BATCH];
        let mut places = [[[0.0; 2]; LANES]; BATCH];
        for ((group, &point), lanes) in groups.iter().zip(pairs).zip(&mut lanes) {
            if let Some(grid) = &group.grid {
                *lanes = grid.candidates(point);
            }
        }
        for ((group, lanes), places) in groups.iter().zip(&lanes).zip(&mut places) {
            if group.grid.is_some() {
                group.places_of(lanes, places);
            }
        }
        for (i, (group, point)) in groups.iter().zip(points.chunks_exact(width)).enumerate() {
            let (place, distance) = if lanes[i] == CROWDED {
                group.of(point)
            } else {
                first_of(&lanes[i], &places[i], pairs[i])
            };
            codes[i] = place as u16;
            sum += distance;
        }
    }
    sum
}

/// The nearest of some candidates, the first of equals, and its squared distance.
#[inline]
fn first_of(lanes: &[u16; LANES], places: &[[f32; 2]; LANES], [x, y]: [f32; 2]) -> (usize, f32) {
    // A float that is not negative is ordered as its bits are; behind them comes the index.
    let keys: [u64; LANES] = std::array::from_fn(|lane| {
        let [cx, cy] = places[lane];
        let distance = (x - cx) * (x - cx) + (y - cy) * (y - cy);
        u64::from(distance.to_bits()) << 16 | u64::from(lanes[lane])
    });
    let halves: [u64; LANES / 2] = std::array::from_fn(|i| keys[i].min(keys[i + LANES / 2]));
    let [a, b, c, d, e, f, g, h] = halves;
    let first = a.min(b).min(c.min(d)).min(e.min(f).min(g.min(h)));
    ((first & 0xFFFF) as usize, f32::from_bits((first >> 16) as u32))
}

/// Square cells over the part of the plane where most centroids are.
#[derive(Clone, Debug)]
struct Grid {
    origin: [f32; 2],
    /// Cells per unit.
    scale: [f32; 2],
    /// Cells along each side.
    side: f32,
    cells: Cells,
}

/// The candidates of cells in Z-order: indices of centroids in rising order, the last of which is repeated to fill the
/// lanes, or [`CROWDED`].
#[derive(Clone, Debug)]
enum Cells {
    /// Of up to 256 centroids.
    Bytes(Vec<[u8; LANES]>),
    Words(Vec<[u16; LANES]>),
}

/// What stands for more candidates than there are lanes: an order that no others have.
const CROWDED: [u16; LANES] = {
    let mut lanes = [0; LANES];
    lanes[0] = 1;
    lanes
};

impl Grid {
    /// Of at least two centroids.
    fn new(centroids: &[[f32; 2]]) -> Self {
        // With a margin for keys beyond the centroids.
        let axes = [0, 1].map(|axis| {
            let (low, size) = bulk(centroids, axis);
            (low - 0.125 * size, 1.25 * size)
        });
        let levels = (CELLS_PER_CENTROID * centroids.len()).next_power_of_two().ilog2().div_ceil(2);
        let area = Area {
            centre: axes.map(|(low, size)| f64::from(low) + 0.5 * f64::from(size)),
            half: axes.map(|(_, size)| 0.5 * f64::from(size)),
        };
        let all: Vec<u16> = (0..centroids.len()).map(|c| c as u16).collect();
        let mut cells = Vec::with_capacity(1 << (2 * levels));
        fill(&mut cells, centroids, area, levels, &all);
        let side = (1 << levels) as f32;
        Self {
            origin: axes.map(|(low, _)| low),
            scale: axes.map(|(_, size)| side / size),
            side,
            cells: if centroids.len() <= 256 {
                Cells::Bytes(cells.into_iter().map(|lanes| lanes.map(|c| c as u8)).collect())
            } else {
                Cells::Words(cells)
            },
        }
    }

    /// The candidates for a point; [`CROWDED`] outside the grid too.
    #[inline]
    fn candidates(&self, point: [f32; 2]) -> [u16; LANES] {
        let place = |axis: usize| (point[axis] - self.origin[axis]) * self.scale[axis];
        let (column, row) = (place(0), place(1));
        let inside = 0.0..self.side;
        if !(inside.contains(&column) && inside.contains(&row)) {
            return CROWDED;
        }
        let cell = z_order(column as u32, row as u32) as usize;
        match &self.cells {
            Cells::Bytes(cells) => {
                let lanes = &cells[cell];
                std::array::from_fn(|lane| lanes[lane].into())
            }
            Cells::Words(cells) => cells[cell],
        }
    }
}

/// Adds the cells of an area of 4^`level` cells, for which only `candidates` count.
fn fill(
    cells: &mut Vec<[u16; LANES]>,
    centroids: &[[f32; 2]],
    area: Area,
    level: u32,
    candidates: &[u16],
) {
    let mut kept = area.possible(centroids, candidates, area.centre);
    if level > 0 {
        for side in [[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]] {
            let quarter = Area {
                centre: [0, 1].map(|axis| area.centre[axis] + side[axis] * area.half[axis]),
                half: area.half.map(|half| 0.5 * half),
            };
            fill(cells, centroids, quarter, level - 1, &kept);
        }
        return;
    }
    for side in [[-1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]] {
        if kept.len() > LANES {
            let corner = [0, 1].map(|axis| area.centre[axis] + side[axis] * area.half[axis]);
            kept = area.possible(centroids, &kept, corner);
        }
    }
    cells.push(if kept.len() > LANES {
        CROWDED
    } else {
        std::array::from_fn(|lane| kept[lane.min(kept.len() - 1)])
    });
}

/// Where most coordinates along an axis begin, all but one of 64 at either end, and the size of their stretch, which
/// is not 0.
fn bulk(rows: &[[f32; 2]], axis: usize) -> (f32, f32) {
    let mut values: Vec<f32> = rows.iter().map(|row| row[axis]).collect();
    values.sort_unstable_by(f32::total_cmp);
    let beyond = values.len() / 64;
    let (low, high) = (values[beyond], values[values.len() - 1 - beyond]);
    (low, (high - low).max(1e-3 * high.abs().max(low.abs())).max(f32::MIN_POSITIVE))
}

/// A box.
#[derive(Clone, Copy)]
struct Area {
    centre: [f64; 2],
    half: [f64; 2],
}

impl Area {
    /// The candidates that may be nearest to some point of the box: all but those from which a rival, the one
    /// nearest to `place`, is nearer everywhere. The difference of two squared distances is linear in the point,
    /// so that its least value in the box follows from that at the centre.
    fn possible(&self, centroids: &[[f32; 2]], candidates: &[u16], place: [f64; 2]) -> Vec<u16> {
        // What the rounding of a point's place in the grid can move is far below this share of a cell.
        let half = self.half.map(|half| (1.0 + CELL_SLACK) * half);
        let square = |[x, y]: [f64; 2]| x * x + y * y;
        let from = |origin: [f64; 2], c: u16| {
            let [x, y] = centroids[usize::from(c)].map(f64::from);
            [x - origin[0], y - origin[1]]
        };
        let (mut rival, mut least) = (0, f64::INFINITY);
        for &c in candidates {
            let distance = square(from(place, c));
            (rival, least) = if distance < least { (c, distance) } else { (rival, least) };
        }
        let rival = from(self.centre, rival);
        let farthest = square([rival[0].abs() + half[0], rival[1].abs() + half[1]]);
        let most = square(rival) + DISTANCE_SLACK * farthest;
        let is_possible = |&c: &u16| {
            let [x, y] = from(self.centre, c);
            let change = (x - rival[0]).abs() * half[0] + (y - rival[1]).abs() * half[1];
            square([x, y]) - 2.0 * change <= most
        };
        // Without a branch on what is kept.
        let mut kept = vec![0; candidates.len()];
        let mut count = 0;
        for c in candidates {
            kept[count] = *c;
            count += usize::from(is_possible(c));
        }
        kept.truncate(count);
        kept
    }
}

#[cfg(test)]
mod tests;
