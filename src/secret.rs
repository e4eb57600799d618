//! Secrets among the flags.

use std::convert::Infallible;
use std::fmt;
use std::fs;
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
        let secret = match self.0.strip_prefix(FILE) {
            None => self.0.clone(),
            Some(path) => fs::read_to_string(path)
                .map_err(|error| format!("cannot read '{path}', given in '{flag}': {error}"))?,
        };
        Ok(secret.trim().to_owned())
    }
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
