//! The one definition of the command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;
use nbdserve::plan::LayerSpec;
use nbdserve::size::parse_size;

use super::KeyArgs;
use crate::unit::cache::Action;
use crate::unit::message::Via;

const EXAMPLES: &str = "\
Examples:
  loopmount disk.raw.xz /mnt           mount the file system in it, read-only
  loopmount -P 1 disk.raw /mnt         partition by number, label or UUID
  loopmount --fuse disk.raw.xz ./raw   the decoded disk as one file
  loopmount -w disk.raw /mnt           writes go to the image
  loopmount --cow disk.raw.xz /mnt     writes are kept apart and gone at the end
  loopmount disk.raw.xz -- ls -l       run a command in it, all gone after
  loopmount -u /mnt                    unmount (or the image, the device, the id)";

/// Mount any disk image, in any wrapping, without root and without unpacking it.
#[derive(Debug, Parser)]
#[command(name = "loopmount", version, after_help = EXAMPLES, max_term_width = 100)]
#[command(override_usage = "loopmount [OPTIONS] IMAGE TARGET
       loopmount [OPTIONS] IMAGE -- COMMAND...
       loopmount --prefetch IMAGE | --commit --cow=FILE IMAGE
       loopmount -u WHAT | --info IMAGE | --list | --stats WHAT | --cache")]
pub struct Cli {
    /// Disk image, block device or URL (with -u: mount point, image, device or id)
    pub image: Option<PathBuf>,

    /// Folder (with --fuse: file) where it appears
    pub target: Option<PathBuf>,

    /// Command to run in the image's root
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,

    /// Unmount
    #[arg(short = 'u', long, conflicts_with_all = ["info", "list", "fuse", "write", "partition"])]
    pub umount: bool,

    /// With -u: detach now, even if it is in use
    #[arg(long, requires = "umount")]
    pub lazy: bool,

    /// Show what the image is: layers, sizes, partitions, file systems
    #[arg(long, conflicts_with_all = ["list", "fuse", "write"])]
    pub info: bool,

    /// List what is mounted
    #[arg(long)]
    pub list: bool,

    /// Show what was read of a mount so far: requests, bytes, times
    #[arg(long, conflicts_with_all = ["umount", "info", "list", "fuse", "write"])]
    pub stats: bool,

    /// Show what is kept on disk of earlier mounts; --cache=clear removes it (with IMAGE: of that one)
    #[arg(long, value_enum, value_name = "clear", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "show", hide_possible_values = true)]
    #[arg(conflicts_with_all = ["umount", "info", "list", "stats", "fuse", "write"])]
    pub cache: Option<Action>,

    /// With --info, --list, --stats or --cache: as JSON
    #[arg(long)]
    pub json: bool,

    /// Partition by number, label, UUID, or as in /dev (sda1)
    #[arg(short = 'P', long, value_name = "PART")]
    pub partition: Option<String>,

    /// Show the decoded disk (with -P: the partition) as one file
    #[arg(long)]
    pub fuse: bool,

    /// Let writes go to the image
    #[arg(short = 'w', long)]
    pub write: bool,

    /// Keep writes apart from the image: until the end, or in FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    #[arg(conflicts_with_all = ["write", "umount", "list", "stats", "cache"])]
    pub cow: Option<Option<PathBuf>>,

    /// Write what --cow=FILE has kept back to the image; FILE is empty then
    #[arg(long, requires = "cow")]
    #[arg(conflicts_with_all = ["info", "fuse", "partition", "prefetch", "download"])]
    pub commit: bool,

    /// The means
    #[arg(long, value_enum, default_value_t = Via::Auto, value_name = "MEANS", hide_possible_values = true)]
    #[arg(help = "The means: auto, nbd, loop, fuse")]
    pub via: Via,

    /// Options for the file system, as after mount -o
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Option<String>,

    /// Use this layer (repeat for more); raw ends probing
    #[arg(long = "layer", value_name = "NAME[:ARGS]", value_parser = parse_layer)]
    pub layers: Vec<LayerSpec>,

    /// Let the image refer to files in DIR too, not only in its own folder (repeat for more)
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub references: Vec<PathBuf>,

    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would take the comment for help")]
    pub keys: KeyArgs,

    /// Memory for decoded blocks and decoders (64M, 1G)
    #[arg(long, value_name = "SIZE", value_parser = parse_size_arg)]
    pub cache_size: Option<u64>,

    /// Most disk space for what is kept for the next mount, 0 for none [default: 10G]
    #[arg(long, value_name = "SIZE", value_parser = parse_size_arg, hide_short_help = true)]
    pub cache_limit: Option<u64>,

    /// Folder for temporary files [default: $TMPDIR or /var/tmp]
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub temp_dir: Option<PathBuf>,

    /// For an http image: a header field for its host
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = parse_header)]
    pub headers: Vec<(String, String)>,

    /// For an https image: trust the certificates in FILE (PEM) in place of the system's
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub ca: Option<PathBuf>,

    /// For an http image: fetch it whole first
    #[arg(long)]
    pub download: bool,

    /// Serve nothing of a block before its check has passed
    #[arg(long)]
    pub verify: bool,

    /// Read all of it once, in the background (without a TARGET: now), so that it is in the cache
    #[arg(long, conflicts_with_all = ["umount", "info", "list", "stats"])]
    pub prefetch: bool,

    /// Stay in the foreground
    #[arg(long)]
    pub foreground: bool,

    /// More messages in the log (repeat for more)
    #[arg(short = 'v', long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

fn parse_layer(text: &str) -> Result<LayerSpec, String> {
    // With the hint, which names the layers that there are.
    text.parse()
        .map_err(|error: nbdserve::Error| error.report().to_string())
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once(':')
        .ok_or("a header field is NAME: VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

pub(super) fn parse_size_arg(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|error| error.to_string())
}

impl Cli {
    /// What clap cannot check by itself.
    ///
    /// # Errors
    /// What is wrong, for the user.
    pub fn check(&self) -> Result<(), String> {
        if self.list {
            return match &self.image {
                Some(_) => Err("--list takes no image".to_owned()),
                None => Ok(()),
            };
        }
        if self.image.is_none() && self.cache.is_none() {
            return Err(if self.umount {
                "-u needs a mount point, an image, a device or an id".to_owned()
            } else {
                "no image was given".to_owned()
            });
        }
        let alone = self.umount || self.info || self.stats || self.cache.is_some() || self.commit;
        if alone && (self.target.is_some() || !self.command.is_empty()) {
            return Err("-u, --info, --stats, --cache and --commit take one argument".to_owned());
        }
        if self.cow == Some(None) && (self.commit || self.info) {
            return Err("here it is --cow=FILE, the file that has kept the writes".to_owned());
        }
        if self.layers.iter().any(|layer| layer.name() == "cow") {
            return Err("it is --cow or --cow=FILE, which finds its place by itself".to_owned());
        }
        if self.json && !self.info && !self.stats && self.cache != Some(Action::Show) {
            return Err("--json goes with --info, --list, --stats or --cache".to_owned());
        }
        if alone {
            return Ok(());
        }
        match (&self.target, self.command.is_empty()) {
            (None, true) if self.prefetch && !self.write && !self.foreground => Ok(()),
            (None, true) => Err("a TARGET or -- COMMAND is missing".to_owned()),
            (Some(_), false) => Err("a TARGET and a COMMAND exclude each other".to_owned()),
            (None, false) if self.fuse => {
                Err("--fuse needs a TARGET, a COMMAND runs in the image's root".to_owned())
            }
            _ if self.fuse && !matches!(self.via, Via::Auto | Via::Fuse) => {
                Err("--fuse shows a file; --via is for file systems".to_owned())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_may_begin_with_dashes() {
        let cli = Cli::try_parse_from(["loopmount", "disk", "--", "ls", "-l", "--"]).unwrap();
        assert_eq!(cli.command, ["ls", "-l", "--"]);
        assert_eq!(cli.check(), Ok(()));
    }

    #[test]
    fn the_cache_is_shown_or_cleared_for_all_or_one() {
        for (line, action, image) in [
            ("loopmount --cache", Action::Show, false),
            ("loopmount --cache disk", Action::Show, true),
            ("loopmount --cache --json", Action::Show, false),
            ("loopmount --cache=clear disk", Action::Clear, true),
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(cli.check(), Ok(()), "{line}");
            assert_eq!((cli.cache, cli.image.is_some()), (Some(action), image));
        }
    }

    #[test]
    fn a_file_for_writes_comes_after_an_equals_sign_only() {
        for (line, file) in [
            ("loopmount --cow disk /mnt", None),
            ("loopmount --cow=kept disk /mnt", Some("kept")),
            ("loopmount --info --cow=kept disk", Some("kept")),
            ("loopmount --commit --cow=kept disk", Some("kept")),
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(cli.check(), Ok(()), "{line}");
            assert_eq!(cli.cow, Some(file.map(PathBuf::from)), "{line}");
            assert_eq!(cli.image.as_deref(), Some(std::path::Path::new("disk")));
        }
    }

    #[test]
    fn a_prefetch_needs_no_target() {
        for line in [
            "--prefetch disk",
            "--prefetch disk /mnt",
            "--prefetch --fuse disk raw",
        ] {
            let cli =
                Cli::try_parse_from(["loopmount"].into_iter().chain(line.split(' '))).unwrap();
            assert_eq!(cli.check(), Ok(()), "{line}");
        }
    }

    #[test]
    fn key_files_may_be_several_and_a_part_of_one() {
        let line =
            "loopmount --key-file a --key-file b --key-file-offset 1K --key-file-size 64 d m";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        assert_eq!(cli.check(), Ok(()));
        assert_eq!(cli.keys.key_file.len(), 2);
        assert_eq!(cli.keys.key_file_offset, Some(1024));
        assert_eq!(cli.keys.key_file_size, Some(64));
    }

    #[test]
    fn forms_that_make_no_sense_are_refused() {
        for line in [
            "loopmount",
            "loopmount disk",
            "loopmount -u",
            "loopmount --list disk",
            "loopmount --info disk /mnt",
            "loopmount disk /mnt -- ls",
            "loopmount --fuse disk -- ls",
            "loopmount --fuse --via loop disk raw",
            "loopmount --json disk /mnt",
            "loopmount --cache disk /mnt",
            "loopmount --cache=clean",
            "loopmount --cache=clear --json",
            "loopmount --cache --info disk",
            "loopmount --cache-limit much disk /mnt",
            "loopmount --prefetch",
            "loopmount --prefetch -w disk",
            "loopmount --prefetch -u /mnt",
            "loopmount --cow -w disk /mnt",
            "loopmount --cow= disk /mnt",
            "loopmount --cow --info disk",
            "loopmount --cow --commit disk",
            "loopmount --commit disk",
            "loopmount --commit --cow=file disk /mnt",
            "loopmount --commit --cow=file -P 1 disk",
            "loopmount --layer cow disk /mnt",
            "loopmount --cow -u /mnt",
            "loopmount --key-file-offset 4 disk /mnt",
            "loopmount --key-fd -1 disk /mnt",
            "loopmount --key-fd 3 --key-file k disk /mnt",
        ] {
            let cli = Cli::try_parse_from(line.split(' '));
            assert!(
                cli.is_err() || cli.is_ok_and(|cli| cli.check().is_err()),
                "{line}"
            );
        }
    }
}
