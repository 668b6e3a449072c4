//! Small dense algebra in f64 for learned rotations: square matrices `[n, n]`, row by row.

/// Sweeps after which Jacobi's method stops; ten are usual.
const MAX_SWEEPS: usize = 40;

/// Eigenvalues in falling order, and the eigenvector of each as a row `[n, n]`, of a symmetric matrix: Jacobi's
/// cyclic rotations.
pub(super) fn eigen(mut matrix: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut vectors = identity(n);
    let size = matrix.iter().map(|x| x * x).sum::<f64>();
    for _ in 0..MAX_SWEEPS {
        let off: f64 = (0..n).flat_map(|i| matrix[i * n..i * n + i].iter()).map(|x| x * x).sum();
        if off <= 1e-30 * size {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                turn(&mut matrix, &mut vectors, n, p, q);
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| matrix[b * n + b].total_cmp(&matrix[a * n + a]));
    let values = order.iter().map(|&i| matrix[i * n + i]).collect();
    (values, order.iter().flat_map(|&i| vectors[i * n..][..n].to_vec()).collect())
}

/// Turns rows and columns `p` and `q` so that the element between them becomes 0.
fn turn(matrix: &mut [f64], vectors: &mut [f64], n: usize, p: usize, q: usize) {
    let between = matrix[p * n + q];
    if between == 0.0 {
        return;
    }
    let slope = (matrix[q * n + q] - matrix[p * n + p]) / (2.0 * between);
    let tangent = slope.signum() / (slope.abs() + (slope * slope + 1.0).sqrt());
    let cosine = 1.0 / (tangent * tangent + 1.0).sqrt();
    let sine = tangent * cosine;
    for row in matrix.chunks_exact_mut(n) {
        (row[p], row[q]) = (cosine * row[p] - sine * row[q], sine * row[p] + cosine * row[q]);
    }
    turn_rows(matrix, n, p, q, (cosine, sine));
    turn_rows(vectors, n, p, q, (cosine, sine));
}

fn turn_rows(matrix: &mut [f64], n: usize, p: usize, q: usize, (cosine, sine): (f64, f64)) {
    let (above, below) = matrix.split_at_mut(q * n);
    for (x, y) in above[p * n..][..n].iter_mut().zip(&mut below[..n]) {
        (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
    }
}

/// A matrix is not orthonormal, nor near one that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::keys) struct NotOrthonormal {
    /// The first row that shows it.
    pub(in crate::keys) row: usize,
}

/// Makes the rows of a matrix orthonormal, each from what the rows above it leave of it.
///
/// # Errors
/// [`NotOrthonormal`] with the first row of which they leave nothing.
pub(super) fn orthonormalise(matrix: &mut [f64], n: usize) -> Result<(), NotOrthonormal> {
    for i in 0..n {
        let (above, rest) = matrix.split_at_mut(i * n);
        let row = &mut rest[..n];
        let before = norm(row);
        // Twice, since the first pass leaves what its roundings made.
        for _ in 0..2 {
            for other in above.chunks_exact(n) {
                let along: f64 = row.iter().zip(other).map(|(x, y)| x * y).sum();
                row.iter_mut().zip(other).for_each(|(x, y)| *x -= along * y);
            }
        }
        let after = norm(row);
        if !(after.is_finite() && after > 1e-6 * before) {
            return Err(NotOrthonormal { row: i });
        }
        row.iter_mut().for_each(|x| *x /= after);
    }
    Ok(())
}

/// The orthogonal matrix R for which the trace of `R · matrixᵀ` is largest: that which brings vectors x closest
/// to vectors y where `matrix` is the sum of `y xᵀ` (the orthogonal Procrustes problem, Schönemann 1966).
/// `None` where the vectors leave a direction open.
pub(super) fn procrustes(matrix: &[f64], n: usize) -> Option<Vec<f64>> {
    let mut gram = vec![0.0; n * n];
    for row in matrix.chunks_exact(n) {
        for (gram, x) in gram.chunks_exact_mut(n).zip(row) {
            gram.iter_mut().zip(row).for_each(|(sum, y)| *sum += x * y);
        }
    }
    let (values, vectors) = eigen(gram, n);
    // R = M (MᵀM)^(-1/2) = Σ over eigenvectors v of MᵀM of (M v / |M v|) vᵀ.
    let mut rotation = vec![0.0; n * n];
    for (value, vector) in values.iter().zip(vectors.chunks_exact(n)) {
        // Squares of singular values, which Jacobi's rotations resolve down to the rounding of the largest.
        if *value <= 1e-14 * values[0] {
            return None;
        }
        for (row, out) in matrix.chunks_exact(n).zip(rotation.chunks_exact_mut(n)) {
            let along: f64 = row.iter().zip(vector).map(|(x, v)| x * v).sum();
            let along = along / value.sqrt();
            out.iter_mut().zip(vector).for_each(|(sum, v)| *sum += along * v);
        }
    }
    orthonormalise(&mut rotation, n).ok().map(|()| rotation)
}

fn identity(n: usize) -> Vec<f64> {
    (0..n * n).map(|i| if i % (n + 1) == 0 { 1.0 } else { 0.0 }).collect()
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests;
