//! What all instances of a namespace have to agree on: their settings.
//!
//! `{<ns>}:config` holds each of them, under its name. An instance that finds another value there exits and says both.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::model::id_key::IdKey;
use crate::model::mode::Mode;
use crate::model::shard::Shards;
use crate::model::window::WindowLength;
use crate::platform::unavailable::Unavailable;

/// Names, as they are stored. The script that takes heartbeats knows `window` too.
const MODE: &str = "mode";
const WINDOW: &str = "window";
const SHARDS: &str = "shards";
/// It is told by its fingerprint, because it is a secret.
const ID_KEY: &str = "id-key";
/// Its value where there is none.
const NO_ID_KEY: &str = "none";

/// The settings of this instance.
pub struct Settings {
    /// Names and values as they are stored.
    stored: Vec<(&'static str, String)>,
}

/// An instance cannot take part.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReportError {
    /// This instance is set up otherwise than those that share its namespace.
    #[error(
        "--{setting} is {ours} here, but {theirs} for the other instances of --namespace {namespace}: \
         {}, or give this one another --namespace",
        remedy(setting, theirs)
    )]
    Disagreement {
        /// The flag.
        setting: String,
        /// What it is here.
        ours: String,
        /// What it is there.
        theirs: String,
        /// What they share.
        namespace: String,
    },
    /// Redis could not be asked.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// What to do with a flag that is something else for the others.
fn remedy(setting: &str, theirs: &str) -> String {
    match (setting, theirs) {
        (ID_KEY, NO_ID_KEY) => "leave it out".to_owned(),
        (ID_KEY, _) => "give it the key that has this fingerprint".to_owned(),
        _ => format!("set it to {theirs}"),
    }
}

impl Settings {
    /// As this instance is set up.
    pub fn new(mode: Mode, window: WindowLength, shards: Shards, id_key: Option<&IdKey>) -> Self {
        let stored = vec![
            (MODE, mode.as_str().to_owned()),
            (WINDOW, format!("{}s", window.seconds())),
            (SHARDS, shards.count().to_string()),
            (ID_KEY, id_key.map_or_else(|| NO_ID_KEY.to_owned(), IdKey::fingerprint)),
        ];
        Self { stored }
    }

    pub(super) fn stored(&self) -> &[(&'static str, String)] {
        &self.stored
    }

    /// What is said when another value is stored, `theirs`.
    pub(super) fn disagreement(&self, setting: &str, theirs: &str, namespace: &str) -> ReportError {
        let namespace = namespace.to_owned();
        let ours = self.stored.iter().find(|(name, _)| *name == setting).map_or("", |(_, ours)| ours);
        let (setting, ours, theirs) = (setting.to_owned(), ours.to_owned(), theirs.to_owned());
        ReportError::Disagreement { setting, ours, theirs, namespace }
    }

    /// How what is stored differs.
    pub(super) fn disagreements(
        &self,
        stored: &BTreeMap<String, String>,
        namespace: &str,
    ) -> Vec<ReportError> {
        let differing = self.stored.iter().filter_map(|(setting, ours)| {
            let theirs = stored.get(*setting).filter(|theirs| *theirs != ours)?;
            Some(self.disagreement(setting, theirs, namespace))
        });
        differing.collect()
    }
}
