//! Checks the order of the rooms of `src/`, and that no files import each other in a circle.

#![allow(clippy::expect_used, clippy::panic, reason = "a test stops at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// From the top down: a room imports only from rooms after it. `src/lib.rs` says what each holds.
const ROOMS: [&str; 11] = [
    "cli",
    "http",
    "callback",
    "publish",
    "coordination",
    "store",
    "redis",
    "hll",
    "model",
    "telemetry",
    "platform",
];

/// The modules that a module names, by their paths without `crate`.
type Imports = BTreeMap<String, BTreeSet<String>>;

/// Reads the sources in a directory, which is of `module`.
fn read(directory: &Path, module: &str, texts: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).expect("a directory of sources") {
        let path = entry.expect("an entry").path();
        let stem = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let below =
            |stem: &str| if module.is_empty() { stem.to_owned() } else { format!("{module}::{stem}") };
        if path.is_dir() {
            read(&path, &below(&stem), texts);
        } else if path.extension().is_some_and(|end| end == "rs") && !["main", "lib"].contains(&&*stem) {
            let module = if stem == "mod" { module.to_owned() } else { below(&stem) };
            texts.insert(module, code_of(&fs::read_to_string(&path).expect("a source")));
        }
    }
}

/// The code without comments, visibilities and tests. Tests may import from rooms above.
fn code_of(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>();
    code.join("\n").replace("(in crate::", "(")
}

/// Every path in a text, split at `::`.
fn paths(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let of_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    text.split(move |c| !of_path(c)).filter(|word| word.contains("::")).map(|word| word.split("::").collect())
}

fn imports() -> Imports {
    let mut all = BTreeMap::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut all);
    let modules: BTreeSet<_> = all.keys().cloned().collect();
    // The longest prefix of a path that is a module.
    let module_of = |path: &[&str]| {
        (1..=path.len()).rev().map(|length| path[..length].join("::")).find(|path| modules.contains(path))
    };
    let mut imports = Imports::new();
    for (module, text) in &all {
        let here: Vec<_> = module.split("::").collect();
        let named = imports.entry(module.clone()).or_default();
        for path in paths(text) {
            let absolute = match path[0] {
                "crate" => path[1..].to_vec(),
                "self" => [&here[..], &path[1..]].concat(),
                "super" => {
                    let up = path.iter().take_while(|word| **word == "super").count();
                    [&here[..here.len().saturating_sub(up)], &path[up..]].concat()
                }
                // One of its own, as the compiler sees it.
                _ => [&here[..], &path[..]].concat(),
            };
            named.extend(module_of(&absolute).filter(|other| other != module));
        }
    }
    imports
}

fn room(module: &str) -> usize {
    let room = module.split("::").next().unwrap_or_default();
    ROOMS.iter().position(|name| *name == room).unwrap_or_else(|| panic!("{module} is in no room"))
}

#[test]
fn rooms_import_only_from_rooms_below() {
    let mut up = Vec::new();
    for (module, named) in imports() {
        up.extend(
            named
                .iter()
                .filter(|other| room(other) < room(&module))
                .map(|other| format!("{module} imports {other}")),
        );
    }
    assert!(up.is_empty(), "{up:#?}");
}

#[test]
fn files_import_each_other_in_no_circle() {
    let mut left = imports();
    // Removes modules that import none (the bottom), and modules that none imports (the top), until nothing changes. The
    // rest is in circles, or between two circles.
    loop {
        let named: BTreeSet<_> = left.values().flatten().cloned().collect();
        let before = left.len();
        left.retain(|module, names| !names.is_empty() && named.contains(module));
        let there: BTreeSet<_> = left.keys().cloned().collect();
        for names in left.values_mut() {
            names.retain(|other| there.contains(other));
        }
        if left.len() == before {
            break;
        }
    }
    assert!(left.is_empty(), "{left:#?}");
}

/// Only one place parses the command line. All other files get plain settings.
#[test]
fn only_the_flags_name_clap() {
    let mut sources = BTreeMap::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut sources);
    let names_clap =
        |(module, text): &(String, String)| text.contains("clap") && !module.starts_with("cli::flags");
    let elsewhere: Vec<_> = sources.into_iter().filter(names_clap).map(|(module, _)| module).collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
}
