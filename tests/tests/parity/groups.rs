//! Queries against the codebooks of product quantization.

use half::f16;
use heterokv_attn::HeadShape;
use heterokv_attn::device::{Coordinate, GroupTables};
use heterokv_quant::{FitInput, GroupFrame, KeyCoder, KeyFormat, Level};
use heterokv_testkit::{Controls, Inputs};

use crate::devices::{Expected, places_or_skip};
use crate::sites::{Output, PartOf, Site, upload};

/// Groups of every width, codes of 4 bits and of the most centroids that workgroups take in parts, with a rotation and
/// without.
const FORMATS: [&str; 6] = ["pq/4x16", "pq/2x32", "pq/8x256", "opq/4x64", "opq/8x16", "pq/8x1024"];

/// Query and KV heads, and channels.
const SHAPES: [(usize, usize, usize); 3] = [(1, 1, 64), (9, 3, 64), (6, 2, 80)];

/// Queries and frames of some KV heads, the last one first, and the tables that they should have.
struct Case {
    shape: HeadShape,
    heads: Vec<u32>,
    frames: Vec<GroupFrame>,
    q: Vec<f32>,
    expected: Expected,
    seed: u64,
}

impl Case {
    fn new(
        format: KeyFormat,
        (num_qo_heads, num_kv_heads, head_dim): (usize, usize, usize),
    ) -> Self {
        let mut inputs = Inputs::new(1800 + (num_qo_heads * head_dim) as u64);
        let shape = HeadShape::new(num_qo_heads, num_kv_heads, head_dim).unwrap();
        let group_len = shape.group_size() * head_dim;
        let q = inputs.gaussian_rows(num_qo_heads, head_dim, 1.0);
        let heads: Vec<u32> = (num_kv_heads.min(2) as u32 - 1..num_kv_heads as u32).rev().collect();
        let (mut frames, mut naive) = (Vec::new(), Vec::new());
        for &head in &heads {
            let num_fitted = format.layout(head_dim).unwrap().min_fit_tokens.max(64);
            let keys = inputs.gaussian_rows(num_fitted, head_dim, 1.5);
            let energy: Vec<f32> = (0..head_dim).map(|c| 1.0 + c as f32).collect();
            let level = Level::detect();
            let input = FitInput { head_dim, keys: &keys, query_energy: &energy, seed: 0, level };
            let coder = KeyCoder::fit(format, &input).unwrap();
            let queries = &q[head as usize * group_len..][..group_len];
            // What the host's own kernels are made by, and not the frame.
            let tables = match coder.group_tables(queries, shape.sm_scale) {
                Some(tables) => tables.tables,
                None => coder.plane_tables(queries, shape.sm_scale).unwrap().tables,
            };
            naive.extend(tables);
            frames.push(coder.group_frame().unwrap());
        }
        let exact: Vec<f64> = naive.iter().map(|&x| f64::from(x)).collect();
        let largest = exact.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        let controls = Controls { num_heads: exact.len() / 16, head_dim: 16 };
        let expected = Expected { exact, naive, norm: 8.0 * largest, controls };
        Self { shape, heads, frames, q, expected, seed: inputs.seed() }
    }

    fn check<S: Site>(&self, site: &S, label: &str) {
        let memories = site.memories();
        let first = &self.frames[0];
        let coordinates: Vec<Coordinate> =
            self.frames.iter().flat_map(Coordinate::all_of).collect();
        let mut rotation: Vec<f32> =
            self.frames.iter().flat_map(|frame| frame.rotation.iter().flatten()).copied().collect();
        if first.rotation.is_none() {
            rotation.push(0.0);
        }
        let codebooks = self.frames.iter().flat_map(|frame| &frame.codebooks);
        let codebooks: Vec<u16> = codebooks.copied().map(f16::to_bits).collect();
        let kv_heads = upload(memories, &self.heads);
        let coordinates = upload(memories, &coordinates);
        let rotation = upload(memories, &rotation);
        let codebooks = upload(memories, &codebooks);
        let q = upload(memories, &self.q);
        let tables = Output::new(memories, self.expected.exact.len());
        let finals = Output::new(memories, self.heads.len() * self.shape.group_size() * 4);
        let prepare = GroupTables::<PartOf<'_, S>> {
            shape: self.shape,
            num_heads: self.heads.len(),
            width: first.width,
            code_bits: first.code_bits,
            is_rotated: first.rotation.is_some(),
            kv_heads: (&kv_heads).into(),
            coordinates: (&coordinates).into(),
            rotation: (&rotation).into(),
            codebooks: (&codebooks).into(),
            q: (&q).into(),
            tables: tables.bound(),
            finals: finals.bound(),
        };
        site.run(&[prepare.launch().unwrap()]);
        self.expected.check(&tables.read(memories, label), label, self.seed);
        assert!(finals.read(memories, label).iter().all(|x| *x == 0.0), "{label}");
    }
}

#[test]
fn group_tables() {
    group_tables_on(places_or_skip());
}

pub(crate) fn group_tables_on<S: Site>(sites: &[S]) {
    for format in FORMATS {
        for shape in SHAPES {
            let case = Case::new(format.parse().unwrap(), shape);
            for site in sites {
                case.check(site, &format!("group_tables {format}, {shape:?}, on {}", site.name()));
            }
        }
    }
}
