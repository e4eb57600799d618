//! Secrets among the flags.

use std::convert::Infallible;
use std::fmt::{self, Display};
use std::fs;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::{info, warn};

/// The prefix of a path to a file that has the secret.
pub(crate) const FILE: &str = "file:";

/// What a flag for a secret was given: the secret itself, or `file:` and the path of a file that has it.
///
/// It is never shown. For the same reason parsing the flag never fails: clap's error message would show the value.
#[derive(Clone)]
pub struct SecretArg(String);

impl SecretArg {
    /// The secret, trimmed. `flag` is its name in error lines, such as `--redis-url <URL>`.
    /// The error is a line for the user, without the secret.
    pub(crate) fn read(&self, flag: &str) -> Result<String, String> {
        resolve(&self.0).map_err(|(path, error)| format!("cannot read '{path}', given in '{flag}': {error}"))
    }

    /// Whether it is in a file, so that it may change.
    pub(crate) fn is_file(&self) -> bool {
        self.0.starts_with(FILE)
    }

    /// What `parse` makes of the secret. The error is a line for the user, without the secret if `parse` does not show it.
    pub(crate) fn parse<T, E: Display>(
        &self,
        flag: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, String> {
        parse(&self.read(flag)?).map_err(|error| format!("invalid value for '{flag}': {error}"))
    }
}

/// A secret in use. A secret in a file can change without a restart: the file is read again. Clones share the value.
pub struct Secret<T>(Arc<InUse<T>>);

struct InUse<T> {
    value: Mutex<T>,
    flag: &'static str,
    parse: fn(&str) -> Result<T, String>,
    /// None if the secret is not in a file.
    file: Option<SecretArg>,
    reading: Mutex<Reading>,
}

struct Reading {
    began: Instant,
    /// A thread is reading the file. It may take long: the file may be on a server that is away.
    under_way: bool,
    /// Why the last read failed.
    trouble: Option<String>,
}

impl<T: Clone + PartialEq + Send + 'static> Secret<T> {
    /// Reads the secret. `flag` is its name in error lines, such as `--api-token <TOKEN>`.
    /// Errors are those of [`SecretArg::parse`].
    pub(crate) fn new(
        arg: &SecretArg,
        flag: &'static str,
        parse: fn(&str) -> Result<T, String>,
    ) -> Result<Self, String> {
        let value = Mutex::new(arg.parse(flag, parse)?);
        let file = Some(arg.clone()).filter(SecretArg::is_file);
        let reading = Mutex::new(Reading { began: Instant::now(), under_way: false, trouble: None });
        Ok(Self(Arc::new(InUse { value, flag, parse, file, reading })))
    }

    /// The secret as last read.
    pub(crate) fn value(&self) -> T {
        self.0.value.lock().clone()
    }

    /// Reads the file of the secret again, if the last read is older than `age`. A thread of its own does it, so that no
    /// request waits for a file. A file without a valid secret changes nothing.
    pub(crate) fn read_again_after(&self, age: Duration) {
        if self.0.file.is_none() {
            return;
        }
        let mut reading = self.0.reading.lock();
        if reading.under_way || reading.began.elapsed() < age {
            return;
        }
        let shared = Arc::clone(&self.0);
        let read = thread::Builder::new().name("secret".to_owned()).spawn(move || shared.read_again());
        reading.began = Instant::now();
        reading.under_way = read.is_ok();
    }
}

impl<T: PartialEq> InUse<T> {
    fn read_again(&self) {
        let Some(file) = &self.file else { return };
        let flag = self.flag;
        let trouble = match file.parse(flag, self.parse) {
            Ok(new) => {
                let mut value = self.value.lock();
                if *value != new {
                    info!("the secret of '{flag}' was read again from its file and has changed");
                    *value = new;
                }
                None
            }
            Err(error) => Some(error),
        };
        let mut reading = self.reading.lock();
        reading.under_way = false;
        if let Some(error) = trouble.as_ref().filter(|error| reading.trouble.as_ref() != Some(error)) {
            warn!(%error, "cannot use the file of '{flag}': the secret stays as it was");
        }
        reading.trouble = trouble;
    }
}

impl<T> Clone for Secret<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Returns the value, or the content of the file that it names, trimmed.
/// The error has the path of a file that cannot be read.
pub(crate) fn resolve(value: &str) -> Result<String, (&str, io::Error)> {
    let resolved = match value.strip_prefix(FILE) {
        None => value.to_owned(),
        Some(path) => fs::read_to_string(path).map_err(|error| (path, error))?,
    };
    Ok(resolved.trim().to_owned())
}

impl FromStr for SecretArg {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for SecretArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
