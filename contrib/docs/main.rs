//! Writes the manual pages and the shell completions, which are kept in the repository:
//! `cargo run --example docs`, from the top folder. `tests/docs.rs` checks that they are current.

mod render;

fn main() -> std::io::Result<()> {
    for (path, text) in render::all()? {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(&path, text)?;
        println!("{}", path.display());
    }
    Ok(())
}
