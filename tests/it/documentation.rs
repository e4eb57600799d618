//! Checks the documents: links have targets, tables are complete, and the examples run.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::response::IntoResponse;
use headcount::http::Failure;
use tempfile::TempDir;

use crate::support::process::{Process, headcount, output_of, run};
use crate::support::tools::in_repository;
use crate::support::{free_port, wait_blocking};

const README_LINES: usize = 250;
const LINE_LENGTH: usize = 160;

fn text_of(path: &str) -> String {
    std::fs::read_to_string(in_repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every document whose links are checked, by its path in the repository.
fn documents() -> Vec<String> {
    let top = ["README.md", "SECURITY.md", "CHANGELOG.md", "thought-process.md", "prometheus/RUNBOOK.md"];
    let mut documents: Vec<_> = top.iter().map(|&path| path.to_owned()).collect();
    for entry in std::fs::read_dir(in_repository("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if Path::new(&name).extension().is_some_and(|extension| extension == "md") {
            documents.push(format!("docs/{name}"));
        }
    }
    documents
}

/// The lines outside blocks of code, each with its number, counted from 1.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        (!fence && !in_code).then_some((index + 1, line))
    })
}

/// A line without what stands in backticks, unless that is the text of a link.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("`")
}

/// The targets of a line's links and pictures.
fn targets(line: &str) -> Vec<String> {
    let line = without_code(line);
    let after = |mark: &str, end: char| {
        let parts: Vec<_> = line.split(mark).skip(1).map(|rest| rest.split(end).next().unwrap()).collect();
        parts.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    [after("](", ')'), after("src=\"", '"'), after("href=\"", '"')].concat()
}

/// The anchor that GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    // For a link GitHub uses the text.
    let mut text = heading.to_owned();
    while let Some((before, rest)) = text.split_once("](") {
        let after = rest.split_once(')').map_or("", |(_, after)| after);
        text = format!("{}{after}", before.replacen('[', "", 1));
    }
    let kept = text.trim().chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// All anchors of a document. A repeated heading gets a number.
fn anchors(text: &str) -> BTreeSet<String> {
    let (mut anchors, mut seen) = (BTreeSet::new(), BTreeMap::<String, usize>::new());
    for (_, line) in prose(text) {
        let heading = line.trim_start_matches('#');
        if heading.len() < line.len() && heading.starts_with(' ') {
            let anchor = anchor(heading);
            let times = seen.entry(anchor.clone()).or_default();
            anchors.insert(if *times == 0 { anchor } else { format!("{anchor}-{times}") });
            *times += 1;
        }
    }
    anchors
}

#[test]
fn anchors_are_those_of_github() {
    let anchors = anchors(
        "# headcount\n## When Redis or Kafka fails\n### `GET /api/verve/accept?id=<integer>`\n## Stop and restart\n\
         ```\n# no heading\n```\n## Stop and restart\n#hashtag\n## A [link](to.md) – and more\n",
    );
    let expected = [
        "headcount",
        "when-redis-or-kafka-fails",
        "get-apiverveacceptidinteger",
        "stop-and-restart",
        "stop-and-restart-1",
        "a-link--and-more",
    ];
    assert_eq!(anchors, expected.map(str::to_owned).into());
}

/// The fault of a link, if it has one.
fn broken(document: &str, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
    let from = in_repository(document);
    let file = if path.is_empty() { from } else { from.parent().unwrap().join(path) };
    let Ok(file) = file.canonicalize() else { return Some(format!("there is no {path}")) };
    if !file.starts_with(in_repository("").canonicalize().unwrap()) {
        return Some(format!("{path} is not in the repository"));
    }
    let anchor = anchor?;
    if file.extension().is_none_or(|extension| extension != "md") {
        return Some(format!("{path} has no anchors"));
    }
    let has_it = anchors(&std::fs::read_to_string(file).unwrap()).contains(anchor);
    (!has_it).then(|| format!("no heading of {path} has the anchor {anchor}"))
}

#[test]
fn every_link_has_a_target() {
    let (mut all, mut wrong) = (0, Vec::new());
    for document in documents() {
        let text = text_of(&document);
        for (number, line) in prose(&text) {
            for target in targets(line) {
                all += 1;
                wrong.extend(broken(&document, &target).map(|why| format!("{document}:{number}: {why}")));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(all > 100, "{all} links");
}

/// Every page of `docs/` is in the README's index.
#[test]
fn the_readme_lists_every_page() {
    let readme = text_of("README.md");
    let linked: BTreeSet<_> = prose(&readme).flat_map(|(_, line)| targets(line)).collect();
    for document in documents().iter().filter(|document| *document != "README.md") {
        assert!(linked.contains(document), "{document}");
    }
}

/// A name in architecture.md that links to a source is defined there.
#[test]
fn the_walks_name_functions_that_exist() {
    let text = text_of("docs/architecture.md");
    let mut names = 0;
    for (number, line) in prose(&text) {
        for link in line.split("[`").skip(1) {
            let (name, rest) = link.split_once("`](").unwrap_or_else(|| panic!("{number}: {link}"));
            let path = rest.split(')').next().unwrap();
            let source = std::fs::read_to_string(in_repository("docs").join(path))
                .unwrap_or_else(|error| panic!("{number}: {path}: {error}"));
            for word in name.split("::") {
                let is_defined = ["fn", "struct", "enum", "trait", "const"].iter().any(|kind| {
                    source.match_indices(&format!("{kind} {word}")).any(|(at, found)| {
                        !source[at + found.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
                    })
                }) || source.contains(&format!("impl {word} "))
                    || source.contains(&format!("impl<'a> {word}<"));
                assert!(is_defined, "line {number}: {path} does not define {word} of {name}");
            }
            names += 1;
        }
    }
    assert!(names > 30, "{names} names");
}

/// The files of a directory and below it that hold Rust.
fn sources(dir: &Path, text: &mut String) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "node_modules" {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            *text += &std::fs::read_to_string(path).unwrap();
        }
    }
}

/// The last column of each fault names its tests, at least the beginnings of their names.
#[test]
fn the_tests_of_every_fault_exist() {
    let (text, mut code) = (text_of("docs/faults.md"), String::new());
    for dir in ["src", "tests"] {
        sources(&in_repository(dir), &mut code);
    }
    let mut names = 0;
    for row in prose(&text).filter_map(|(_, line)| cells(line)).filter(|cells| cells.len() > 5) {
        let tests = row.last().unwrap();
        for name in tests.split('`').skip(1).step_by(2) {
            let function = name.rsplit("::").next().unwrap();
            assert!(code.contains(&format!("fn {function}")), "there is no test {name}");
            names += 1;
        }
        assert!(tests == "test" || tests.starts_with("---") || tests.starts_with('`'), "{row:?}");
    }
    assert!(names > 30, "{names} names");
}

#[test]
fn the_readme_is_short() {
    let readme = text_of("README.md");
    let lines = readme.lines().count();
    assert!(lines <= README_LINES, "{lines} lines");
    for (number, line) in prose(&readme).filter(|(_, line)| !line.starts_with('|')) {
        let length = line.chars().count();
        assert!(length <= LINE_LENGTH, "line {number} has {length} characters: {line}");
    }
}

/// A row of a table, as its cells. A bar in a cell is written `\|`.
fn cells(line: &str) -> Option<Vec<String>> {
    let line = line.strip_prefix("| ")?.strip_suffix(" |")?.replace(r"\|", "\u{1}");
    // An empty cell is a space, or nothing, between two bars.
    Some(line.split('|').map(|cell| cell.trim().replace('\u{1}', "|")).collect())
}

/// The rows of flags in a document: flag, values that it may have, and its default.
fn flags_of(document: &str) -> BTreeMap<String, (Vec<String>, String)> {
    let text = text_of(document);
    let of_flags = |cells: &Vec<String>| cells.len() == 3 && cells[0].starts_with("`--");
    let rows = prose(&text).filter_map(|(_, line)| cells(line)).filter(of_flags);
    let mut flags = BTreeMap::new();
    for row in rows {
        let mut words = row[0].trim_matches('`').split([' ', '|']);
        let flag = words.next().unwrap().to_owned();
        let values = words.map(str::to_owned).collect();
        assert!(flags.insert(flag, (values, row[1].clone())).is_none(), "{document} has {} twice", row[0]);
    }
    flags
}

/// A value in brackets, as clap shows defaults and possible values.
fn bracketed<'a>(entry: &'a str, what: &str) -> Option<&'a str> {
    entry.split_once(&format!("[{what}: "))?.1.split(']').next()
}

#[test]
fn every_flag_is_described_with_its_default() {
    let help = String::from_utf8(run(&["serve", "-h"]).stdout).unwrap();
    let help = help.replace("\n                ", " ");
    let mut described = flags_of("docs/configuration.md");
    for entry in help.split("\n      --").skip(1) {
        let entry = entry.split_whitespace().collect::<Vec<_>>().join(" ");
        let flag = format!("--{}", entry.split(' ').next().unwrap());
        let (values, default) = described.remove(&flag).unwrap_or_else(|| panic!("{flag} is missing"));
        if let Some(expected) = bracketed(&entry, "default") {
            let expected = expected.split(',').next().unwrap();
            assert!(default.starts_with(&format!("`{expected}`")), "{flag}: {expected}, not {default}");
        } else {
            // Words for what follows from other flags or from the machine; else `none`, or nothing for a switch.
            assert!(
                !default.starts_with('`')
                    && (default.starts_with("none")
                        || ["", "as `--listen`", "one a core"].contains(&&*default)),
                "{flag} has no default {default}"
            );
        }
        if let Some(possible) = bracketed(&entry, "possible values") {
            assert_eq!(values, possible.split(", ").collect::<Vec<_>>(), "{flag}");
        }
    }
    assert_eq!(described.keys().collect::<Vec<_>>(), [""; 0], "there are no such flags");
}

#[test]
fn the_flags_of_the_readme_are_those_of_the_configuration() {
    let all = flags_of("docs/configuration.md");
    let readme = flags_of("README.md");
    assert_eq!(readme.len(), 10);
    for (flag, row) in &readme {
        assert_eq!(all.get(flag), Some(row), "{flag}");
    }
}

#[test]
fn every_failure_is_described_with_its_status() {
    let text = text_of("docs/api.md");
    let rows = prose(&text).filter_map(|(_, line)| cells(line));
    let described: BTreeSet<_> = rows
        .filter_map(|cells| Some((cells[0].parse::<u16>().ok()?, cells[1].trim_matches('`').to_owned())))
        .collect();
    let failures =
        Failure::ALL.map(|failure| (failure.into_response().status().as_u16(), failure.reason().to_owned()));
    assert_eq!(described, failures.into());
}

/// The ports that documents name. The test replaces them by free ones, so that it touches no other server.
const PORTS: [u16; 4] = [8080, 8081, 8082, 6379];

/// Runs the commands of a block of code, in a directory of its own.
struct Shell {
    dir: TempDir,
    ports: BTreeMap<String, String>,
    environment: Vec<(String, String)>,
    background: Vec<Background>,
}

/// A command that ended in `&`.
struct Background {
    _process: Process,
    log: Arc<Mutex<Vec<String>>>,
}

impl Shell {
    fn new() -> Self {
        let ports: BTreeMap<_, _> =
            PORTS.iter().map(|port| (port.to_string(), free_port().to_string())).collect();
        let environment = vec![
            ("HEADCOUNT_LISTEN".to_owned(), format!("0.0.0.0:{}", ports["8080"])),
            ("no_proxy".to_owned(), "*".to_owned()),
        ];
        let dir = tempfile::tempdir().unwrap();
        Self { dir, ports, environment, background: Vec::new() }
    }

    /// A text with the ports of the test.
    fn with_ports(&self, text: &str) -> String {
        self.ports.iter().fold(text.to_owned(), |text, (written, real)| replace_number(&text, written, real))
    }

    /// A text with the ports of the document.
    fn without_ports(&self, text: &str) -> String {
        self.ports.iter().fold(text.to_owned(), |text, (written, real)| replace_number(&text, real, written))
    }

    fn command(&self, line: &str) -> Command {
        let program = PathBuf::from(headcount().get_program());
        let paths = [program.parent().unwrap().display().to_string(), std::env::var("PATH").unwrap()];
        let mut command = Command::new("bash");
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HEADCOUNT_")) {
            command.env_remove(name);
        }
        command.env("PATH", paths.join(":")).envs(self.environment.iter().cloned()).current_dir(&self.dir);
        command.args(["-c", &self.with_ports(line)]);
        command
    }

    /// Runs a command and returns its output. A background command keeps running and returns none.
    fn run(&mut self, line: &str) -> String {
        // cargo has built the binary already.
        let line = line.replace("cargo run --release --", "headcount");
        if let Some(assignment) = line.strip_prefix("export ") {
            let (name, value) = assignment.split_once('=').unwrap();
            let value = self.with_ports(value);
            self.environment.push((name.to_owned(), value));
        } else if let Some(line) = line.strip_suffix('&') {
            self.start(line.trim());
        } else {
            let output = output_of(&mut self.command(&line));
            let said = String::from_utf8(output.stdout).unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{line}: {}\n{said}{errors}", output.status);
            return self.without_ports(&said);
        }
        String::new()
    }

    /// Starts a server, and waits until it listens.
    fn start(&mut self, line: &str) {
        let mut command = self.command(&format!("exec {line}"));
        let mut process = Process(command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap());
        let (lines, log) = (BufReader::new(process.0.stdout.take().unwrap()), Arc::default());
        let sink: Arc<Mutex<Vec<String>>> = Arc::clone(&log);
        // Ends with the process, whose end closes the pipe.
        std::thread::spawn(move || {
            lines.lines().map_while(Result::ok).for_each(|line| sink.lock().unwrap().push(line));
        });
        let named = self.ports.iter().find(|(written, _)| line.contains(&***written));
        let port: u16 = named.map_or(&self.ports["8080"], |(_, real)| real).parse().unwrap();
        wait_blocking(&format!("{line} to listen"), || TcpStream::connect(("127.0.0.1", port)).is_ok());
        self.background.push(Background { _process: process, log });
    }

    /// Waits until a server in the background has logged a line.
    fn wait_for_line(&self, expected: &str) {
        wait_blocking(&format!("the line {expected}"), || {
            let logs = self.background.iter().flat_map(|process| process.log.lock().unwrap().clone());
            let mut lines = logs.map(|line| without_time(&self.without_ports(&line)));
            lines.any(|line| line == masked(expected))
        });
    }
}

/// Replaces a number in a text, but not as a part of a longer number.
fn replace_number(text: &str, number: &str, by: &str) -> String {
    let (mut replaced, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(number) {
        let (before, after) = (&rest[..at], &rest[at + number.len()..]);
        let alone = !before.ends_with(|c: char| c.is_ascii_digit())
            && !after.starts_with(|c: char| c.is_ascii_digit());
        replaced += before;
        replaced += if alone { by } else { number };
        rest = after;
    }
    replaced + rest
}

/// A line of the log without the time at its beginning.
fn without_time(line: &str) -> String {
    masked(line.split_once(' ').map_or("", |(_, rest)| rest.trim_start()))
}

/// A text without the parts that vary: times, the version of Redis, and the offset of its clock.
fn masked(text: &str) -> String {
    const TIME: &str = "0000-00-00T00:00:00Z";
    let mut masked = text.to_owned();
    let is_time = |text: &str| {
        let same = |(c, of): (char, char)| if of == '0' { c.is_ascii_digit() } else { c == of };
        text.len() == TIME.len() && text.chars().zip(TIME.chars()).all(same)
    };
    for at in 0..masked.len().saturating_sub(TIME.len() - 1) {
        if masked.get(at..at + TIME.len()).is_some_and(is_time) {
            masked.replace_range(at..at + TIME.len(), TIME);
        }
    }
    if masked.starts_with("ok   version: redis ") {
        "ok   version: redis".clone_into(&mut masked);
    } else if masked.starts_with("ok   clock: ") {
        "ok   clock".clone_into(&mut masked);
    }
    masked
}

/// A command, and what it prints.
struct Example {
    command: String,
    output: Vec<String>,
}

/// The blocks of commands of a document.
fn blocks(document: &str) -> Vec<Vec<Example>> {
    let text = text_of(document);
    let blocks = text.split("```console\n").skip(1).map(|block| block.split("```").next().unwrap());
    let examples = |block: &str| {
        let mut examples: Vec<Example> = Vec::new();
        for line in block.lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                // The rest is a comment for the reader.
                let command = command.split(" #").next().unwrap().trim_end().to_owned();
                examples.push(Example { command, output: Vec::new() });
            } else {
                examples.last_mut().expect("a command comes first").output.push(line.to_owned());
            }
        }
        examples
    };
    blocks.map(examples).collect()
}

/// Waits for a moment with at least ten more seconds in the minute, so that no window ends in the middle of an example.
fn wait_for_room() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let into = Duration::new(now.as_secs() % 10, now.subsec_nanos());
    let mut wait = Duration::from_secs(10).saturating_sub(into);
    if (now + wait).as_secs() % 60 >= 50 {
        wait += Duration::from_secs(10);
    }
    std::thread::sleep(wait);
}

/// Runs a block, and compares what it prints.
fn run_block(document: &str, shell: &mut Shell, block: &[Example]) {
    if block.iter().any(|example| example.command.ends_with('&')) {
        wait_for_room();
    }
    for Example { command, output } in block {
        let said = shell.run(command);
        let (of_the_log, expected): (Vec<_>, Vec<_>) =
            output.iter().partition(|line| line.starts_with("... "));
        let expected: Vec<_> = expected.into_iter().map(|line| masked(line)).collect();
        let said: Vec<_> = said.lines().map(masked).collect();
        assert_eq!(said, expected, "{document}: {command}");
        for line in of_the_log {
            shell.wait_for_line(&line[4..]);
        }
    }
}

/// Commands for developers. They take long or need more than the tests have, so the test only checks that their files
/// exist.
fn is_for_developers(command: &str) -> bool {
    let program = command.split(' ').next().unwrap();
    let is_script =
        ["scripts/", "benches/"].iter().any(|dir| program.trim_start_matches("./").starts_with(dir));
    if is_script {
        assert!(in_repository(program).is_file(), "{command}");
    }
    is_script || command.starts_with("cargo bench ") || needs_an_engine(command)
}

/// What scripts/image-test and scripts/chart-test run instead.
fn needs_an_engine(command: &str) -> bool {
    ["docker ", "helm ", "kubectl "].iter().any(|program| command.starts_with(program))
}

#[test]
fn the_examples_of_the_readme_run() {
    let mut commands = 0;
    for block in blocks("README.md") {
        if block.iter().all(|example| is_for_developers(&example.command))
            || needs_an_engine(&block[0].command)
        {
            continue;
        }
        run_block("README.md", &mut Shell::new(), &block);
        commands += block.len();
    }
    assert!(commands >= 10, "{commands}");
}

#[test]
fn the_examples_of_the_api_run() {
    let blocks = blocks("docs/api.md");
    assert_eq!(blocks.len(), 2);
    for block in &blocks {
        let mut shell = Shell::new();
        if !block[0].command.starts_with("headcount ") {
            shell.run("headcount &");
        }
        run_block("docs/api.md", &mut shell, block);
    }
}
