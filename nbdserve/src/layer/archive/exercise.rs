//! All of an archive, for fuzz targets.

use super::{Args, LayerType, NUMBER, choose, of};
use crate::testing::fuzz::{look, may_refuse};
use crate::{Cx, Error, Kind, Volume};

/// Files of one archive that are opened.
const MOST: usize = 8;

/// Lists an archive, chooses, opens and reads files; names what was chosen and finds it again.
///
/// # Panics
/// When something is wrong with our code.
pub(crate) fn exercise(layer: &LayerType, below: &Volume, cx: &Cx) {
    let Some(kind) = of(layer) else {
        return;
    };
    let files = match (kind.read)(below, cx) {
        Ok(files) => files,
        Err(error) => return may_refuse(&error),
    };
    let none = Args::new();
    let recognise = |sample: &super::super::Sample<'_>| {
        let is_odd = sample.size % 2 == 1;
        is_odd.then(|| "odd".to_owned())
    };
    for recognise in [None, Some::<super::choose::Recognise<'_>>(&recognise)] {
        refused(choose(files.as_ref(), &none, recognise, "hint", cx).err());
    }
    for file in files.files().take(MOST) {
        let by_number = Args::from([(NUMBER.to_owned(), file.number.to_string())]);
        let Ok(chosen) = choose(files.as_ref(), &by_number, None, "", cx) else {
            panic!("the file {} cannot be chosen", file.number);
        };
        assert_eq!(chosen.number, file.number);
        // What the plan keeps leads to the same file.
        match choose(files.as_ref(), &chosen.args, None, "", cx) {
            Ok(again) => assert_eq!(again.number, file.number, "{:?}", chosen.args),
            Err(error) => panic!("{:?}: {error:?}", chosen.args),
        }
        match files.open(file.number) {
            Ok(opened) => {
                assert_eq!(opened.volume.size(), file.size);
                look(&opened.volume);
            }
            Err(error) => may_refuse(&error),
        }
        let first = crate::error::escape(&String::from_utf8_lossy(file.name));
        let pattern: String = first.chars().take(3).chain(['*']).collect();
        let by_name = Args::from([(super::NAME.to_owned(), pattern)]);
        refused(choose(files.as_ref(), &by_name, None, "", cx).err());
    }
}

/// That there is no such file is no fault of the image.
fn refused(error: Option<Error>) {
    if let Some(error) = error.filter(|error| error.kind() != Kind::OutOfRange) {
        may_refuse(&error);
    }
}
