//! Bar charts as SVG.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::mode::Mode;
use super::stats::{Rounds, Spread};

const WIDTH: u32 = 920;
const HEIGHT: u32 = 420;
/// What the title and the legend take of the height.
const HEAD: u32 = 62;
const GREY: RGBColor = RGBColor(0x60, 0x60, 0x60);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Groups of bars, one bar of each series in every group.
pub(super) struct Chart {
    pub(super) title: String,
    /// What the bars' height is.
    pub(super) axis: String,
    pub(super) groups: Vec<String>,
    pub(super) series: Vec<Series>,
    /// Digits behind the point, in the bars' labels.
    pub(super) digits: usize,
}

/// The bars of one colour.
pub(super) struct Series {
    pub(super) name: String,
    pub(super) colour: (u8, u8, u8),
    /// One for each group; a group may lack it.
    pub(super) values: Vec<Option<Spread>>,
}

impl Chart {
    /// A figure of each mode, relative to the unprobed program's, with a group for each of `measured`.
    pub(super) fn over_unprobed<S>(
        title: &str,
        measured: &[(u32, Rounds<Mode, S>)],
        group: impl Fn(u32) -> String,
        figure: impl Fn(&S) -> f64,
    ) -> Result<Self> {
        let (_, first) = measured
            .first()
            .ok_or_else(|| anyhow!("nothing was measured"))?;
        let mut series = Vec::new();
        for mode in first.kinds().filter(|&mode| mode != Mode::Unprobed) {
            let mut values = Vec::new();
            for (_, rounds) in measured {
                let unprobed = rounds.spread(Mode::Unprobed, &figure)?.median;
                values.push(Some(rounds.spread(mode, &figure)?.over(unprobed)));
            }
            series.push(Series {
                name: mode.name().into(),
                colour: mode.colour(),
                values,
            });
        }
        Ok(Self {
            title: title.into(),
            axis: "× unprobed".into(),
            groups: measured.iter().map(|&(size, _)| group(size)).collect(),
            series,
            digits: 2,
        })
    }

    /// The chart as the text of an SVG file.
    pub(super) fn svg(&self) -> Result<String> {
        let mut svg = String::new();
        self.draw(SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)))
            .map_err(|error| anyhow!("{}: {error}", self.title))?;
        Ok(svg)
    }

    fn draw(&self, backend: SVGBackend<'_>) -> Result<(), Box<dyn std::error::Error>> {
        let values = self.series.iter().flat_map(|series| &series.values);
        let highest = values
            .flatten()
            .map(|value| value.max)
            .fold(0.0_f64, f64::max);
        // A group is 1 wide, of which a tenth at each side is empty.
        let bar = 0.8 / self.series.len().max(1) as f64;

        let area = backend.into_drawing_area();
        area.fill(&WHITE)?;
        let (head, area) = area.split_vertically(HEAD);
        self.draw_head(&head)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .margin_top(0)
            .x_label_area_size(30)
            .y_label_area_size(62)
            .build_cartesian_2d(
                0.0..self.groups.len() as f64,
                0.0..(highest * 1.08).max(f64::MIN_POSITIVE),
            )?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .disable_x_axis()
            .light_line_style(WHITE)
            .axis_style(GREY)
            .y_desc(&self.axis)
            .y_label_formatter(&|value| value.to_string())
            .label_style(("sans-serif", 13))
            .draw()?;
        for (index, series) in self.series.iter().enumerate() {
            let (red, green, blue) = series.colour;
            let colour = RGBColor(red, green, blue);
            let left = |group: usize| group as f64 + 0.1 + bar * index as f64;
            let bars = series.values.iter().enumerate();
            let bars: Vec<_> = bars
                .filter_map(|(group, value)| Some((left(group), (*value)?)))
                .collect();
            chart.draw_series(bars.iter().map(|&(x, value)| {
                Rectangle::new([(x, 0.0), (x + bar * 0.92, value.median)], colour.filled())
            }))?;
            let middle = bar * 0.46;
            chart.draw_series(bars.iter().map(|&(x, value)| {
                let ends = [(x + middle, value.min), (x + middle, value.max)];
                PathElement::new(ends, BLACK.mix(0.5))
            }))?;
            let above = TextStyle::from(("sans-serif", 11))
                .pos(Pos::new(HPos::Center, VPos::Bottom))
                .color(&BLACK);
            chart.draw_series(bars.iter().map(|&(x, value)| {
                let label = format!("{:.*}", self.digits, value.median);
                EmptyElement::at((x + middle, value.max)) + Text::new(label, (0, -3), above.clone())
            }))?;
        }
        let below = TextStyle::from(("sans-serif", 13))
            .pos(Pos::new(HPos::Center, VPos::Top))
            .color(&BLACK);
        chart.draw_series(self.groups.iter().enumerate().map(|(group, name)| {
            EmptyElement::at((group as f64 + 0.5, 0.0))
                + Text::new(name.clone(), (0, 8), below.clone())
        }))?;
        area.present()?;
        Ok(())
    }

    /// The title, and below it which colour is what.
    fn draw_head(&self, head: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
        head.draw(&Text::new(self.title.clone(), (14, 10), ("sans-serif", 17)))?;
        let mut x = 16;
        for series in &self.series {
            let (red, green, blue) = series.colour;
            let square = [(x, 42), (x + 11, 53)];
            head.draw(&Rectangle::new(square, RGBColor(red, green, blue).filled()))?;
            head.draw(&Text::new(
                series.name.clone(),
                (x + 17, 41),
                ("sans-serif", 13),
            ))?;
            // About as wide as text of this size gets: nothing here knows the reader's font.
            x += 44 + 7 * series.name.len() as i32;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_names_its_groups_and_series_and_labels_its_bars() {
        let value = |median| {
            Some(Spread {
                median,
                min: median,
                max: median,
            })
        };
        let chart = Chart {
            title: "Round trips".into(),
            axis: "times".into(),
            groups: vec!["100 B".into(), "4 KiB".into()],
            series: vec![Series {
                name: "text".into(),
                colour: (1, 2, 3),
                values: vec![value(1.25), None],
            }],
            digits: 2,
        };
        let svg = chart.svg().unwrap();
        for expected in [
            "Round trips",
            "times",
            "100 B",
            "4 KiB",
            "text",
            "1.25",
            "#010203",
        ] {
            assert!(svg.contains(expected), "{expected} is not in\n{svg}");
        }
    }
}
