//! The frame of a chart: its picture, its grid, its axes with their numbers, and where a value lies.

use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::axis::Axis;
use super::paint::{GRID, INK, MUTED, Paint};

/// What is drawn on, in pixels.
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// What drawing gives.
pub(super) type Drawn<T = ()> = Result<T, DrawingAreaErrorKind<std::io::Error>>;

/// Pixels of a chart, twice those that it is shown at, since plotters rounds to whole ones.
pub(super) const SIZE: (u32, u32) = (1120, 720);

/// Pixels from the top of a capital to its foot are about two thirds of this.
const TEXT: i32 = 34;

/// plotters writes the size of a font divided by this.
const FONT_SCALE: f64 = 1.24;

/// A picture as an `<svg>` element that scales with its container. `title` is for those who do not see it; a
/// picture without one is decoration.
pub(super) fn svg(
    size: (u32, u32),
    title: &str,
    draw: impl FnOnce(&Area<'_>) -> Drawn,
) -> Drawn<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        draw(&area)?;
        area.present()?;
    }
    // The opening tag of plotters fixes the width in pixels and has no title.
    let inside = text.split_once('>').map_or("", |(_, inside)| inside);
    let (width, height) = size;
    let open = format!(r#"<svg viewBox="0 0 {width} {height}""#);
    if title.is_empty() {
        return Ok(format!(r#"{open} aria-hidden="true">{inside}"#));
    }
    let title = escaped(title);
    Ok(format!(r#"{open} role="img" aria-label="{title}"><title>{title}</title>{inside}"#))
}

/// Text that is text in HTML, in attributes too.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Writes `text` with its anchor at a pixel.
pub(super) fn write(
    area: &Area<'_>,
    text: &str,
    paint: Paint,
    at: (i32, i32),
    anchor: (HPos, VPos),
) -> Drawn {
    let size = f64::from(TEXT) * FONT_SCALE;
    let style = TextStyle::from(("sans-serif", size).into_font())
        .color(&paint.light)
        .pos(Pos::new(anchor.0, anchor.1));
    area.draw(&Text::new(text.to_owned(), at, style))
}

/// About as many pixels as `text` is wide.
pub(super) fn width(text: &str) -> i32 {
    (text.chars().count() as f64 * f64::from(TEXT) * 0.64).ceil() as i32
}

/// A line of dashes along pixels.
pub(super) fn dashes(area: &Area<'_>, points: &[(i32, i32)], style: ShapeStyle) -> Drawn {
    area.draw(&DashedPathElement::new(points.to_vec(), 12, 8, style))
}

/// A chart with two axes, of which the grid and the numbers are drawn.
pub(super) struct Frame<'a, 'b> {
    pub(super) area: &'a Area<'b>,
    x: Axis,
    y: Axis,
    left: i32,
    right: i32,
    top: i32,
    bottom: i32,
}

impl<'a, 'b> Frame<'a, 'b> {
    pub(super) fn new(area: &'a Area<'b>, x: Axis, y: Axis) -> Drawn<Self> {
        let widest = y.ticks.iter().map(|(_, text)| width(text)).max().unwrap_or(0);
        let last = x.ticks.last().map_or(0, |(_, text)| width(text) / 2);
        let frame = Self {
            left: widest + 24,
            right: SIZE.0 as i32 - 8 - last.max(16),
            top: 66,
            bottom: SIZE.1 as i32 - 112,
            area,
            x,
            y,
        };
        frame.draw_axes()?;
        Ok(frame)
    }

    fn draw_axes(&self) -> Drawn {
        let grid = GRID.light.stroke_width(2);
        for (place, text) in &self.y.ticks {
            let y = self.y_pixel(*place);
            self.area.draw(&PathElement::new(vec![(self.left, y), (self.right, y)], grid))?;
            write(self.area, text, MUTED, (self.left - 12, y), (HPos::Right, VPos::Center))?;
        }
        for (place, text) in &self.x.ticks {
            let x = self.x_pixel(*place);
            self.area.draw(&PathElement::new(vec![(x, self.top), (x, self.bottom)], grid))?;
            write(self.area, text, MUTED, (x, self.bottom + 24), (HPos::Center, VPos::Top))?;
        }
        write(self.area, &self.y.title, INK, (2, 4), (HPos::Left, VPos::Top))?;
        let end = (self.right, SIZE.1 as i32 - 40);
        write(self.area, &self.x.title, INK, end, (HPos::Right, VPos::Top))
    }

    /// Where a share of the x axis is.
    fn x_pixel(&self, place: f64) -> i32 {
        self.left + (place * f64::from(self.right - self.left)).round() as i32
    }

    /// Where a share of the y axis is.
    fn y_pixel(&self, place: f64) -> i32 {
        self.bottom - (place * f64::from(self.bottom - self.top)).round() as i32
    }

    /// The pixel of two values; what an axis cannot show is at its end.
    pub(super) fn at(&self, x: f64, y: f64) -> (i32, i32) {
        (self.x_pixel(self.x.place(x)), self.y_pixel(self.y.place(y)))
    }

    /// A line through values.
    pub(super) fn line(&self, points: &[(f64, f64)], style: ShapeStyle) -> Drawn {
        let pixels: Vec<_> = points.iter().map(|&(x, y)| self.at(x, y)).collect();
        self.area.draw(&PathElement::new(pixels, style))
    }

    /// A line of dashes through values.
    pub(super) fn dashes(&self, points: &[(f64, f64)], style: ShapeStyle) -> Drawn {
        let pixels: Vec<_> = points.iter().map(|&(x, y)| self.at(x, y)).collect();
        dashes(self.area, &pixels, style)
    }

    /// What lies between two lines over the same x.
    pub(super) fn band(&self, points: &[(f64, f64, f64)], paint: Paint) -> Drawn {
        let low = points.iter().map(|&(x, low, _)| self.at(x, low));
        let high = points.iter().rev().map(|&(x, _, high)| self.at(x, high));
        self.area.draw(&Polygon::new(low.chain(high).collect::<Vec<_>>(), paint.light.filled()))
    }
}
