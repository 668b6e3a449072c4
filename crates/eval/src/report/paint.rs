//! Colours and marks: which cache is drawn how, in light and in dark.

use plotters::prelude::*;
use serde::Serialize;

use super::frame::{Area, Drawn, svg};

/// A colour of the charts on a light page, and what it becomes on a dark one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Paint {
    pub(super) light: RGBColor,
    dark: RGBColor,
}

const fn paint(light: u32, dark: u32) -> Paint {
    Paint { light: rgb(light), dark: rgb(dark) }
}

const fn rgb(hex: u32) -> RGBColor {
    RGBColor((hex >> 16) as u8, (hex >> 8) as u8, hex as u8)
}

/// Text, the front and the reference.
pub(super) const INK: Paint = paint(0x1b_1b1b, 0xec_ecec);
/// Numbers along the axes.
pub(super) const MUTED: Paint = paint(0x55_5555, 0xb8_b8b8);
/// Lines of the grid.
pub(super) const GRID: Paint = paint(0xdc_dcdc, 0x3c_3c3c);

/// Told apart by people who do not see all colours, and by all on light and on dark (after Okabe and Ito).
pub(super) const SERIES: [Paint; 7] = [
    paint(0x00_72b2, 0x5a_b0e8),
    paint(0xd5_5e00, 0xf0_8a3c),
    paint(0x00_805e, 0x2f_c49a),
    paint(0xb0_508c, 0xe0_8fc0),
    paint(0xa6_7500, 0xe6_b422),
    paint(0x3b_3b98, 0xa7_a7f5),
    paint(0x6b_6b6b, 0xa8_a8a8),
];

/// From a score of 0 to one of 1, in equal steps, each with the text that can be read on it; the same in the dark.
pub(super) const HEAT: [(Paint, Paint); 11] = [
    (paint(0xb3_4a00, 0xb3_4a00), PAPER),
    (paint(0xc0_6b2e, 0xc0_6b2e), COAL),
    (paint(0xce_8d5b, 0xce_8d5b), COAL),
    (paint(0xdb_ae89, 0xdb_ae89), COAL),
    (paint(0xe9_d0b6, 0xe9_d0b6), COAL),
    (paint(0xf6_f1e4, 0xf6_f1e4), COAL),
    (paint(0xc6_cfd2, 0xc6_cfd2), COAL),
    (paint(0x97_acc0, 0x97_acc0), COAL),
    (paint(0x67_8aae, 0x67_8aae), COAL),
    (paint(0x38_679c, 0x38_679c), PAPER),
    (paint(0x08_458a, 0x08_458a), PAPER),
];

/// Text on dark cells.
const PAPER: Paint = paint(0xff_ffff, 0xff_ffff);
/// Text on pale cells.
const COAL: Paint = paint(0x1c_1c1c, 0x1c_1c1c);

/// A rule of the style sheet: what is drawn in `light` is shown in `dark` on a dark page.
#[derive(Serialize)]
pub(super) struct Rule {
    light: String,
    dark: String,
}

/// The rules of all colours above.
pub(super) fn rules() -> Vec<Rule> {
    let hex = |RGBColor(r, g, b): RGBColor| format!("#{r:02X}{g:02X}{b:02X}");
    let all = [INK, MUTED, GRID].into_iter().chain(SERIES);
    all.map(|paint| Rule { light: hex(paint.light), dark: hex(paint.dark) }).collect()
}

/// How one cache of one engine is drawn, the same in every chart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Look {
    /// What all others are measured against.
    Reference,
    /// The how-manieth of the others it is.
    Other(usize),
}

impl Look {
    pub(super) fn paint(self) -> Paint {
        match self {
            Self::Reference => INK,
            Self::Other(place) => SERIES[place % SERIES.len()],
        }
    }

    /// Draws its mark around a pixel. Shapes come round before colours do, so that 35 caches differ.
    pub(super) fn mark(self, area: &Area<'_>, (x, y): (i32, i32)) -> Drawn {
        let style = self.paint().light;
        let polygon = |points: &[(i32, i32)]| {
            let points: Vec<_> = points.iter().map(|(dx, dy)| (x + dx, y + dy)).collect();
            area.draw(&Polygon::new(points, style.filled()))
        };
        let Self::Other(place) = self else {
            return area.draw(&Circle::new((x, y), 10, style.stroke_width(4)));
        };
        match place % 5 {
            0 => area.draw(&Circle::new((x, y), 9, style.filled())),
            1 => polygon(&[(-8, -8), (8, -8), (8, 8), (-8, 8)]),
            2 => polygon(&[(0, -11), (10, 8), (-10, 8)]),
            3 => polygon(&[(0, -12), (11, 0), (0, 12), (-11, 0)]),
            _ => {
                let line = |ends: [(i32, i32); 2]| {
                    let ends: Vec<_> = ends.iter().map(|(dx, dy)| (x + dx, y + dy)).collect();
                    area.draw(&PathElement::new(ends, style.stroke_width(5)))
                };
                line([(-9, -9), (9, 9)])?;
                line([(-9, 9), (9, -9)])
            }
        }
    }

    /// Width of its lines in pixels.
    pub(super) fn stroke(self) -> ShapeStyle {
        self.paint().light.stroke_width(4)
    }
}

/// An entry of a legend.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Entry {
    swatch: String,
    label: String,
}

/// A cache's mark with its name.
pub(super) fn entry(look: Look, label: &str) -> Drawn<Entry> {
    let swatch = svg((44, 32), "", |area| {
        area.draw(&PathElement::new(vec![(0, 16), (44, 16)], look.stroke()))?;
        look.mark(area, (22, 16))
    })?;
    Ok(Entry { swatch, label: label.to_owned() })
}

/// A filled square with a name.
pub(super) fn area_entry(paint: Paint, label: &str) -> Drawn<Entry> {
    let swatch = svg((44, 32), "", |area| {
        area.draw(&Rectangle::new([(8, 4), (36, 28)], paint.light.filled()))
    })?;
    Ok(Entry { swatch, label: label.to_owned() })
}

/// A line of dashes with a name.
pub(super) fn dashes_entry(paint: Paint, label: &str) -> Drawn<Entry> {
    let swatch = svg((44, 32), "", |area| {
        super::frame::dashes(area, &[(0, 16), (44, 16)], paint.light.stroke_width(3))
    })?;
    Ok(Entry { swatch, label: label.to_owned() })
}
