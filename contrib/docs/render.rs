//! What is made from the one definition of the command line and the table of layers.

use std::fs;
use std::io::{Error, Result};
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_complete::Shell;
use loopmount::cli::Cli;
use nbdserve::layer::{LAYERS, LayerType};

/// Where a page's text takes in what is generated.
const OPTIONS: &str = ".\\\" OPTIONS\n";
const LAYER_LIST: &str = ".\\\" LAYERS\n";

/// Every generated file and what belongs into it.
///
/// # Errors
/// When a text that takes part cannot be read or lacks its mark.
pub(crate) fn all() -> Result<Vec<(PathBuf, String)>> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let texts = top.join("contrib/docs");
    let mut files = vec![
        (
            top.join("man/loopmount.1"),
            page("loopmount", "1", &texts, OPTIONS, &options()?)?,
        ),
        (
            top.join("man/loopmount-layers.7"),
            page("loopmount-layers", "7", &texts, LAYER_LIST, &layers(top)?)?,
        ),
    ];
    for (shell, name) in [
        (Shell::Bash, "loopmount.bash"),
        (Shell::Zsh, "_loopmount"),
        (Shell::Fish, "loopmount.fish"),
    ] {
        let path = top.join("contrib/completions").join(name);
        files.push((path, completion(shell)));
    }
    Ok(files)
}

/// The page `name`: a title line, and its text with `generated` in the place of `mark`.
fn page(name: &str, section: &str, texts: &Path, mark: &str, generated: &str) -> Result<String> {
    let path = texts.join(format!("{name}.{section}.in"));
    let text = read(&path)?;
    let Some((before, after)) = text.split_once(mark) else {
        let what = format!("{} has no line {mark:?}", path.display());
        return Err(Error::other(what));
    };
    let version = env!("CARGO_PKG_VERSION");
    let title = name.to_uppercase();
    Ok(format!(
        ".\\\" Made by `cargo run --example docs`: change contrib/docs/{name}.{section}.in instead.\n\
         .TH {title} {section} \"\" \"loopmount {version}\" \"loopmount\"\n\
         {before}{generated}{after}"
    ))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path)
        .map_err(|error| Error::other(format!("cannot read {}: {error}", path.display())))
}

/// The section OPTIONS of loopmount(1).
fn options() -> Result<String> {
    let mut bytes = Vec::new();
    // What -h leaves out is a part of the page, and its writer would leave out the text alone.
    let command = Cli::command().mut_args(|arg| arg.hide_short_help(false));
    clap_mangen::Man::new(command).render_options_section(&mut bytes)?;
    let text = String::from_utf8(bytes).map_err(Error::other)?;
    // The writer puts definitions for old formatters in front.
    let start = text.find(".SH").unwrap_or(0);
    Ok(text[start..].replace("\\*(Aq", "\\(aq"))
}

/// A subsection for each layer: what it takes, and the text that lies beside its code.
fn layers(top: &Path) -> Result<String> {
    let mut out = String::new();
    for layer in LAYERS {
        let path = format!("nbdserve/src/layer/{}/man.roff", layer.name);
        out.push_str(&format!(".SS {}\n", layer.name));
        out.push_str(&capital(layer.summary));
        out.push_str(".\n");
        out.push_str(&parameters(layer));
        out.push_str(&read(&top.join(path))?);
    }
    Ok(out)
}

fn parameters(layer: &LayerType) -> String {
    let mut out = String::new();
    for (number, param) in layer.params.iter().enumerate() {
        let (name, summary) = (param.name, param.summary);
        let first = if number == 0 {
            ".\nThe key may be left out"
        } else {
            ""
        };
        out.push_str(&format!(
            ".TP\n.BI {name}= VALUE\n{}{first}.\n",
            capital(summary)
        ));
    }
    if !out.is_empty() {
        out.push_str(".P\n");
    }
    out
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        // A name that is written small stays so.
        Some(_)
            if ["xz", "bzip2", "lzip", "zstd", "lz4"]
                .iter()
                .any(|name| text.starts_with(name)) =>
        {
            text.to_owned()
        }
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => String::new(),
    }
}

fn completion(shell: Shell) -> String {
    let mut bytes = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "loopmount", &mut bytes);
    // Generators write text.
    String::from_utf8_lossy(&bytes).into_owned()
}
