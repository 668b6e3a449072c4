//! Exact search for the nearest of many short vectors.
//!
//! In two dimensions a grid knows, for each of its cells, the few centroids that can be nearest to a point
//! there; a search reads one cell and those. Elsewhere, and outside the grid, every centroid is tried.

/// Cells of the grid along each side; a power of two.
const SIDE: usize = 1 << LEVELS;
const LEVELS: u32 = 4;

/// Candidates that are tried side by side.
const LANES: usize = 8;

/// What the rounding of distances and of a point's place in the grid can move, well above either.
const DISTANCE_SLACK: f64 = 1e-6;
const CELL_SLACK: f64 = 1e-3;

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
        if let (Some(grid), &[x, y]) = (&self.grid, point)
            && let Some(candidates) = grid.candidates([x, y])
        {
            let (rows, _) = self.rows.as_chunks::<2>();
            return grid.nearest_of(candidates, rows, [x, y]);
        }
        match self.width {
            2 => self.scan::<2>(point),
            4 => self.scan::<4>(point),
            _ => self.scan::<8>(point),
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

/// Cells over the plane around the centroids.
#[derive(Clone, Debug)]
struct Grid {
    origin: [f32; 2],
    /// Cells per unit.
    scale: [f32; 2],
    /// Where each cell's candidates begin among the lanes of `candidates`, and how many lanes there are.
    cells: Vec<(u32, u32)>,
    /// Indices of centroids in rising order; the last of a cell is repeated to fill its lanes.
    candidates: Vec<[u16; LANES]>,
}

impl Grid {
    fn new(centroids: &[[f32; 2]]) -> Self {
        let bounds = |axis: usize| {
            let values = centroids.iter().map(|c| c[axis]);
            let (low, high) =
                values.fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), x| (l.min(x), h.max(x)));
            // A margin for keys beyond the centroids, and a size that is not 0.
            let size = (high - low).max(1e-3 * high.abs().max(low.abs())).max(f32::MIN_POSITIVE);
            (low - 0.25 * size, 1.5 * size)
        };
        let axes = [bounds(0), bounds(1)];
        let mut grid = Self {
            origin: axes.map(|(low, _)| low),
            scale: axes.map(|(_, size)| SIDE as f32 / size),
            cells: vec![(0, 0); SIDE * SIDE],
            candidates: Vec::new(),
        };
        let cell = axes.map(|(_, size)| f64::from(size) / SIDE as f64);
        let all: Vec<u16> = (0..centroids.len()).map(|c| c as u16).collect();
        let build = Build { centroids, origin: axes.map(|(low, _)| low.into()), cell };
        build.fill(&mut grid, [0, 0], LEVELS, &all);
        grid
    }

    /// The lanes of candidates for a point; `None` outside the grid.
    fn candidates(&self, point: [f32; 2]) -> Option<&[[u16; LANES]]> {
        let place = |axis: usize| (point[axis] - self.origin[axis]) * self.scale[axis];
        let (column, row) = (place(0), place(1));
        let inside = 0.0..SIDE as f32;
        if !(inside.contains(&column) && inside.contains(&row)) {
            return None;
        }
        let (first, count) = self.cells[row as usize * SIDE + column as usize];
        Some(&self.candidates[first as usize..][..count as usize])
    }

    /// The first of the nearest candidates.
    fn nearest_of(
        &self,
        candidates: &[[u16; LANES]],
        centroids: &[[f32; 2]],
        [x, y]: [f32; 2],
    ) -> (usize, f32) {
        let mut best = (0, f32::INFINITY);
        for lanes in candidates {
            let distances = lanes.map(|c| {
                let [cx, cy] = centroids[usize::from(c)];
                (x - cx) * (x - cx) + (y - cy) * (y - cy)
            });
            for (&c, distance) in lanes.iter().zip(distances) {
                if distance < best.1 {
                    best = (usize::from(c), distance);
                }
            }
        }
        best
    }
}

/// The filling of a grid, from the whole of it down to its cells.
struct Build<'a> {
    centroids: &'a [[f32; 2]],
    origin: [f64; 2],
    /// Size of a cell.
    cell: [f64; 2],
}

impl Build<'_> {
    /// Fills the square of 2^`level` cells from the cell `first` on, for which only `candidates` count.
    fn fill(&self, grid: &mut Grid, first: [usize; 2], level: u32, candidates: &[u16]) {
        let side = 1 << level;
        let low: [f64; 2] = std::array::from_fn(|axis| {
            self.origin[axis] + (first[axis] as f64 - CELL_SLACK) * self.cell[axis]
        });
        let high: [f64; 2] = std::array::from_fn(|axis| {
            low[axis] + (side as f64 + 2.0 * CELL_SLACK) * self.cell[axis]
        });
        let kept = self.possible(low, high, candidates);
        if level > 0 {
            let half = side / 2;
            for [column, row] in [[0, 0], [half, 0], [0, half], [half, half]] {
                self.fill(grid, [first[0] + column, first[1] + row], level - 1, &kept);
            }
            return;
        }
        let begin = grid.candidates.len();
        grid.candidates.extend(
            kept.chunks(LANES)
                .map(|chunk| std::array::from_fn(|lane| chunk[lane.min(chunk.len() - 1)])),
        );
        let lanes = grid.candidates.len() - begin;
        grid.cells[first[1] * SIDE + first[0]] = (begin as u32, lanes as u32);
    }

    /// The candidates that are nearest to some point of a box: all but those from which the one nearest to
    /// the centre is nearer at every corner. (The difference of two squared distances is linear in the point, and
    /// concave with the slack, so that its least value is at a corner.)
    fn possible(&self, low: [f64; 2], high: [f64; 2], candidates: &[u16]) -> Vec<u16> {
        let distance = |c: u16, point: [f64; 2]| {
            let [x, y] = self.centroids[usize::from(c)].map(f64::from);
            (point[0] - x).powi(2) + (point[1] - y).powi(2)
        };
        let centre = [0.5 * (low[0] + high[0]), 0.5 * (low[1] + high[1])];
        let nearer = |a: &&u16, b: &&u16| distance(**a, centre).total_cmp(&distance(**b, centre));
        let Some(&rival) = candidates.iter().min_by(nearer) else { return Vec::new() };
        let corners = [low, high, [low[0], high[1]], [high[0], low[1]]]
            .map(|corner| (corner, distance(rival, corner) * (1.0 + DISTANCE_SLACK)));
        let is_possible =
            |c: &u16| corners.iter().any(|&(corner, least)| distance(*c, corner) <= least);
        candidates.iter().copied().filter(is_possible).collect()
    }
}

#[cfg(test)]
mod tests;
