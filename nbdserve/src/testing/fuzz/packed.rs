//! The layers bzip2, lzma and lzip.

use super::{cx, exercise, may_refuse};
use crate::layer::bzip2::BZIP2;
use crate::layer::lzip::LZIP;
use crate::layer::lzma::LZMA;
use crate::layer::{Args, LayerType};
use crate::source::Memory;

pub(super) fn bzip2(data: &[u8]) {
    open(&BZIP2, data);
}

pub(super) fn lzma(data: &[u8]) {
    open(&LZMA, data);
}

pub(super) fn lzip(data: &[u8]) {
    open(&LZIP, data);
}

fn open(layer: &LayerType, data: &[u8]) {
    let below = Memory::volume(data.to_vec());
    match (layer.open)(&below, &Args::new(), &cx()) {
        Ok(volume) => {
            exercise(&volume);
            // Closing promises nothing about the image.
            let _ = volume.close();
        }
        Err(error) => may_refuse(&error),
    }
}
