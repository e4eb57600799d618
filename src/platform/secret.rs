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

/// What stands before the path of a file that has the secret.
pub const FILE: &str = "file:";

/// What a flag for a secret was given: the secret itself, or `file:` and the path of a file that has it.
///
/// It is never shown. That is also why taking it never fails: the message of a flag that cannot be taken has
/// its value in it.
#[derive(Clone)]
pub struct SecretArg(String);

impl SecretArg {
    /// The secret, without white space around it. `flag` is for the message, such as `--redis-url <URL>`.
    ///
    /// # Errors
    ///
    /// A line for the user, without the secret, when the file cannot be read.
    pub fn read(&self, flag: &str) -> Result<String, String> {
        resolve(&self.0).map_err(|(path, error)| format!("cannot read '{path}', given in '{flag}': {error}"))
    }

    /// Whether it is in a file, where it may be changed.
    pub fn is_file(&self) -> bool {
        self.0.starts_with(FILE)
    }

    /// What `parse` makes of the secret.
    ///
    /// # Errors
    ///
    /// A line for the user, without the secret if what `parse` says is without it.
    pub fn parse<T, E: Display>(
        &self,
        flag: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, String> {
        parse(&self.read(flag)?).map_err(|error| format!("invalid value for '{flag}': {error}"))
    }
}

/// A secret in use. One that is in a file can be read again, so that it can be changed without a restart. Clones are the
/// same one.
pub struct Secret<T>(Arc<InUse<T>>);

struct InUse<T> {
    value: Mutex<T>,
    flag: &'static str,
    parse: fn(&str) -> Result<T, String>,
    /// The file, if it is in one.
    file: Option<SecretArg>,
    reading: Mutex<Reading>,
}

struct Reading {
    began: Instant,
    /// A thread reads it. It may take long: the file may be on a server that is away.
    under_way: bool,
    /// Why the file was of no use when it was last read.
    trouble: Option<String>,
}

impl<T: Clone + PartialEq + Send + 'static> Secret<T> {
    /// Reads what `flag` was given, which is how messages name it, such as `--api-token <TOKEN>`.
    ///
    /// # Errors
    ///
    /// A line for the user, without the secret if what `parse` says is without it.
    pub fn new(
        arg: &SecretArg,
        flag: &'static str,
        parse: fn(&str) -> Result<T, String>,
    ) -> Result<Self, String> {
        let value = Mutex::new(arg.parse(flag, parse)?);
        let file = Some(arg.clone()).filter(SecretArg::is_file);
        let reading = Mutex::new(Reading { began: Instant::now(), under_way: false, trouble: None });
        Ok(Self(Arc::new(InUse { value, flag, parse, file, reading })))
    }

    /// As it was read last.
    pub fn value(&self) -> T {
        self.0.value.lock().clone()
    }

    /// Has it read again, if it is in a file and that was not done for so long, on a thread of its own: nobody waits for a
    /// file. What is no such secret changes nothing.
    pub fn read_again_after(&self, age: Duration) {
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
            warn!(%error, "the file of '{flag}' is of no use: the secret stays as it was");
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

/// What a value stands for: itself, or what is in the file that it names; without white space around it.
///
/// # Errors
///
/// The path of a file that cannot be read, and why.
pub fn resolve(value: &str) -> Result<String, (&str, io::Error)> {
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
