//! Whether the file ends before what its tables point at.

use super::tables::Tables;
use crate::ByteRange;
use crate::layer::cut::{MOST, said};

impl Tables {
    /// What is to be said when it does. The tables that lie farthest are looked at, [`MOST`] bytes of
    /// them.
    pub(super) fn note(&self) -> Option<String> {
        let shape = self.shape();
        let mut tables = Vec::new();
        let mut index = 0;
        while index < self.l1_len() {
            match self.table(index) {
                Ok(Some(table)) => tables.push((table.at, index)),
                Ok(None) => {}
                Err(error) => return Some(said(&error.to_string())),
            }
            let next = index.saturating_add(1);
            index = self.none_until(next, self.l1_len()).max(next);
        }
        tables.sort_unstable_by_key(|(at, _)| std::cmp::Reverse(*at));
        let most = usize::try_from(MOST >> shape.cluster_bits).unwrap_or(1);
        let span = 1_u64 << shape.l1_span_bits();
        for (_, index) in tables.into_iter().take(most.max(1)) {
            let start = u64::try_from(index).unwrap_or(0).saturating_mul(span);
            let end = start.saturating_add(span).min(self.size());
            let mut runs = self.runs(ByteRange::between(start.min(end), end));
            if let Some(Err(error)) = runs.find(Result::is_err) {
                return Some(said(&error.to_string()));
            }
        }
        None
    }
}
