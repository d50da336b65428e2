//! Decoders that are between two blocks.

use std::any::Any;
use std::fmt;

use super::budget::Reservation;

/// Decoders that wait for the next block of their layer.
#[derive(Debug, Default)]
pub(super) struct Spares(Vec<Spare>);

/// A decoder that waits. Its memory stays reserved.
pub(super) struct Spare {
    layer: u64,
    decoder: Box<dyn Any + Send>,
    memory: Reservation,
}

impl Spares {
    /// A spare decoder of a layer, and the memory that is reserved for it.
    pub(super) fn take(&mut self, layer: u64) -> Option<(Box<dyn Any + Send>, Reservation)> {
        let at = self.0.iter().position(|spare| spare.layer == layer)?;
        let spare = self.0.swap_remove(at);
        Some((spare.decoder, spare.memory))
    }

    /// Keeps a decoder for the next block of its layer.
    pub(super) fn keep(&mut self, layer: u64, decoder: Box<dyn Any + Send>, memory: Reservation) {
        self.0.push(Spare {
            layer,
            decoder,
            memory,
        });
    }

    /// Takes any of them out.
    pub(super) fn pop(&mut self) -> Option<Spare> {
        self.0.pop()
    }

    /// Takes all of a layer out.
    pub(super) fn of(&mut self, layer: u64) -> Vec<Spare> {
        self.0
            .extract_if(.., |spare| spare.layer == layer)
            .collect()
    }
}

impl fmt::Debug for Spare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spare({}, {:?})", self.layer, self.memory)
    }
}
