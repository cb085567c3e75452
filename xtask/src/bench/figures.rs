//! Many measurements of one thing, and what may be said of them. An even number of them has the
//! mean of the two in the middle as its median, so that neither side is favoured.

use std::fmt;

/// Measurements of one thing, in ascending order; at least one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Figures(Vec<f64>);

impl Figures {
    /// Of these measurements; none, if there are none.
    pub(crate) fn of(measured: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = measured.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        (!sorted.is_empty()).then_some(Self(sorted))
    }

    pub(crate) fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        if self.0.len().is_multiple_of(2) {
            f64::midpoint(self.0[middle - 1], self.0[middle])
        } else {
            self.0[middle]
        }
    }

    pub(crate) fn least(&self) -> f64 {
        self.0[0]
    }

    pub(crate) fn most(&self) -> f64 {
        self.0[self.0.len() - 1]
    }

    /// The smallest measurement that this share of all, in percent, did not exceed.
    pub(crate) fn at_most(&self, percent: usize) -> f64 {
        let rank = (self.0.len() * percent).div_ceil(100).clamp(1, self.0.len());
        self.0[rank - 1]
    }
}

/// The median and the spread, `12.0 (10.5 to 13.0)`, with the formatter's precision.
impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(1);
        let (median, least, most) = (self.median(), self.least(), self.most());
        write!(f, "{median:.digits$} ({least:.digits$} to {most:.digits$})")
    }
}

/// The ratio of what was measured in the same turn, turn by turn.
pub(crate) fn ratios(ours: &[f64], theirs: &[f64]) -> Option<Figures> {
    Figures::of(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs))
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "these are exact")]
mod tests {
    use super::*;

    #[test]
    fn a_median_does_not_depend_on_the_order() {
        assert_eq!(Figures::of([3.0, 1.0, 2.0]).unwrap().median(), 2.0);
        assert_eq!(Figures::of([4.0, 1.0, 2.0, 3.0]).unwrap().median(), 2.5);
        assert_eq!(Figures::of([]), None);
    }

    #[test]
    fn a_percentile_is_one_of_the_measurements() {
        let figures = Figures::of((1..=200).map(f64::from)).unwrap();
        assert_eq!((figures.at_most(99), figures.at_most(100)), (198.0, 200.0));
        assert_eq!(Figures::of([7.0]).unwrap().at_most(99), 7.0);
    }

    #[test]
    fn the_spread_is_shown_with_the_median() {
        let figures = Figures::of([1.0, 2.5, 9.0]).unwrap();
        assert_eq!(format!("{figures:.1}"), "2.5 (1.0 to 9.0)");
    }

    #[test]
    fn ratios_are_of_the_same_turn() {
        let ratios = ratios(&[8.0, 5.0, 9.0], &[10.0, 10.0, 10.0]).unwrap();
        assert_eq!((ratios.least(), ratios.median(), ratios.most()), (0.5, 0.8, 0.9));
    }
}
