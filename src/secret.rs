//! Secrets among the flags.

use std::convert::Infallible;
use std::fmt::{self, Display};
use std::fs;
use std::io;
use std::str::FromStr;

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
