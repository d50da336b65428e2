//! The manual pages and completions: current, well formed, and every example in them works.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "../contrib/docs/render.rs"]
mod render;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::helper_link::HelperLink;
use common::images::Images;
use common::run::Cmd;
use common::sandbox::with_small_disk;
use common::{Sandbox, Who, must, require_tool};

fn pages() -> Vec<PathBuf> {
    let man = Path::new(env!("CARGO_MANIFEST_DIR")).join("man");
    let mut pages: Vec<_> = fs::read_dir(man)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    pages.sort();
    assert!(pages.len() >= 3, "{pages:?}");
    pages
}

#[test]
fn generated_files_are_current() {
    for (path, text) in render::all().unwrap() {
        let kept = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            kept == text,
            "{} is not current: cargo run --example docs",
            path.display()
        );
    }
}

#[test]
fn every_page_is_well_formed_and_of_this_version() {
    require_tool("groff", "groff-base");
    for page in pages() {
        let groff = Command::new("groff")
            .args(["-man", "-Tutf8", "-ww", "-z"])
            .arg(&page)
            .output()
            .unwrap();
        let warnings = String::from_utf8_lossy(&groff.stderr);
        assert!(warnings.is_empty(), "{}", warnings);
        let text = fs::read_to_string(&page).unwrap();
        let version = concat!("\"loopmount ", env!("CARGO_PKG_VERSION"), "\"");
        assert!(text.contains(version), "{}: {version}", page.display());
    }
}

#[test]
fn every_paragraph_with_a_tag_has_a_text() {
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for tagged in text.split("\n.TP\n").skip(1) {
            let mut lines = tagged.lines();
            let (tag, first) = (lines.next().unwrap(), lines.next());
            let is_text = first.is_some_and(|line| !line.is_empty());
            assert!(is_text, "{}: {tag}", page.display());
        }
    }
}

#[test]
fn bash_takes_the_completion_and_completes() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/completions/loopmount.bash");
    let script = format!(
        "source '{}'; COMP_WORDS=(loopmount --um); COMP_CWORD=1; \
         _loopmount loopmount --um loopmount; echo \"${{COMPREPLY[@]}}\"",
        file.display()
    );
    let out = must(Command::new("bash").args(["--norc", "-c", &script]));
    assert_eq!(String::from_utf8(out).unwrap(), "--umount\n");
}

/// An example of a page: the word in a comment right before it, and its lines.
#[derive(Debug)]
struct Example {
    kind: String,
    text: String,
}

fn examples(page: &Path) -> Vec<Example> {
    let text = fs::read_to_string(page).unwrap();
    let mut found = Vec::new();
    let mut last = "";
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line == ".EX" {
            let kind = last.strip_prefix(".\\\" ").unwrap_or_default().to_owned();
            let body: Vec<_> = lines.by_ref().take_while(|line| *line != ".EE").collect();
            let text = body.join("\n").replace("\\-", "-").replace("\\e", "\\");
            assert!(!text.contains("\\f"), "fonts in an example: {text}");
            found.push(Example { kind, text });
        }
        last = line;
    }
    found
}

/// Runs the lines in a folder with the images and a mount point that the pages speak of.
fn run(sandbox: &Sandbox, text: &str) {
    let program = Path::new(env!("CARGO_BIN_EXE_loopmount"));
    let path = format!(
        "{}:{}:/usr/sbin:/sbin",
        program.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let script = format!("set -euo pipefail\n{}", here(sandbox, text));
    let bash: Cmd = sandbox.tool("bash").args(["--norc", "-c", &script]);
    bash.env("PATH", path).ok();
}

/// The text with the pages' folders replaced by ones of the test.
fn here(sandbox: &Sandbox, text: &str) -> String {
    let dir = sandbox.path().to_str().unwrap();
    text.replace("/mnt", &format!("{dir}/mnt"))
        .replace("/srv/", &format!("{dir}/"))
}

#[test]
fn every_example_works() {
    let mut count = 0;
    for page in pages() {
        for example in examples(&page) {
            let (sandbox, image) = with_small_disk(Who::Root);
            fs::rename(image, sandbox.join("disk.raw.xz")).unwrap();
            must(
                Command::new("xz")
                    .args(["-dk", "disk.raw.xz"])
                    .current_dir(sandbox.path()),
            );
            for (name, image) in [
                ("lvm.raw", Images::lvm as fn(&Images) -> PathBuf),
                ("mirror.raw", Images::mirror),
            ] {
                if example.text.contains(name) {
                    sandbox.image_as(&image(common::images()), name);
                }
            }
            sandbox.new_dir("mnt");
            match example.kind.as_str() {
                "" => run(&sandbox, &example.text),
                "mount" => {
                    let _link = HelperLink::new();
                    run(&sandbox, &example.text);
                }
                "fstab" => {
                    let _link = HelperLink::new();
                    let line = here(&sandbox, &example.text) + "\n";
                    sandbox.new_file("fstab", line);
                    run(&sandbox, "mount -T fstab --all; ls mnt/etc; umount mnt");
                }
                other => panic!("what is an example of {other}?"),
            }
            sandbox.assert_clean();
            count += 1;
        }
    }
    assert!(count >= 10, "only {count} examples were found");
}
