//! What all instances of a namespace have to agree on: their settings, and the layout of the keys.
//!
//! `{<ns>}:config` holds each of them, under its name. An instance that finds another value there exits and prints both.
//!
//! The layout numbers the form of the stored data. It gets another number when an older version could misread what a newer
//! one stores. Version one stored no layout, so none means layout 1. Version one compares only the settings that it knows. So
//! `mode` is stored as `hll;layout=2`: version one finds a mode that is not its own, and exits as well.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::model::id::IdKind;
use crate::model::id_key::IdKey;
use crate::model::mode::Mode;
use crate::model::shard::Shards;
use crate::model::window::WindowLength;
use crate::platform::unavailable::Unavailable;

/// The layout of the keys that this version reads and writes.
pub const LAYOUT: &str = "2";
/// The layout where none is stored.
const LAYOUT_OF_VERSION_ONE: &str = "1";

/// Between the mode and the layout.
const AND_LAYOUT: &str = ";layout=";
/// The fingerprint without a key.
const NO_ID_KEY: &str = "none";

/// The settings of this instance.
pub struct Settings {
    /// Names and values as they are stored. The layout is the first, because without it the others mean nothing.
    stored: Vec<(&'static str, String)>,
}

/// Why a heartbeat was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HeartbeatError {
    /// The other instances of the namespace have another value of a setting.
    #[error(
        "--{setting} is {ours} here, but {theirs} for the other instances of --namespace {namespace}: \
         {}, or give this one another --namespace",
        remedy(setting, theirs)
    )]
    Disagreement {
        /// The flag.
        setting: String,
        /// Its value on this instance.
        ours: String,
        /// Its value on the others.
        theirs: String,
        /// The namespace that they share.
        namespace: String,
    },
    /// Another version of headcount uses the namespace.
    #[error(
        "the keys of --namespace {namespace} have layout {theirs}, but this version of headcount needs layout \
         {LAYOUT}: give it another --namespace (docs/instances.md, \"Move to another layout\")"
    )]
    Layout {
        /// The layout that is stored.
        theirs: String,
        /// The namespace that they share.
        namespace: String,
    },
    /// Redis did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// What the user can do about a flag that differs.
fn remedy(setting: &str, theirs: &str) -> String {
    match (setting, theirs) {
        ("id-key", NO_ID_KEY) => "leave it out".to_owned(),
        ("id-key", _) => "give it the key that has this fingerprint".to_owned(),
        _ => format!("set it to {theirs}"),
    }
}

impl Settings {
    /// From the flags of this instance.
    pub fn new(
        ids: IdKind,
        mode: Mode,
        window: WindowLength,
        shards: Shards,
        id_key: Option<&IdKey>,
    ) -> Self {
        let stored = vec![
            ("layout", LAYOUT.to_owned()),
            ("mode", format!("{}{AND_LAYOUT}{LAYOUT}", mode.as_str())),
            ("ids", ids.as_str().to_owned()),
            ("window", format!("{}s", window.seconds())),
            ("shards", shards.count().to_string()),
            // The key is a secret: its fingerprint is stored.
            ("id-key", id_key.map_or_else(|| NO_ID_KEY.to_owned(), IdKey::fingerprint)),
        ];
        Self { stored }
    }

    pub(super) fn stored(&self) -> &[(&'static str, String)] {
        &self.stored
    }

    /// The error when another value, `theirs`, is stored.
    pub(super) fn disagreement(&self, setting: &str, theirs: &str, namespace: &str) -> HeartbeatError {
        let namespace = namespace.to_owned();
        let ours = self.stored.iter().find(|(name, _)| *name == setting).map_or("", |(_, ours)| ours);
        let (ours, theirs) = match setting {
            "layout" => return HeartbeatError::Layout { theirs: theirs.to_owned(), namespace },
            "mode" => {
                let (theirs, layout) =
                    theirs.split_once(AND_LAYOUT).unwrap_or((theirs, LAYOUT_OF_VERSION_ONE));
                if layout != LAYOUT {
                    return HeartbeatError::Layout { theirs: layout.to_owned(), namespace };
                }
                (ours.split(AND_LAYOUT).next().unwrap_or_default(), theirs)
            }
            _ => (ours, theirs),
        };
        let (setting, ours, theirs) = (setting.to_owned(), ours.to_owned(), theirs.to_owned());
        HeartbeatError::Disagreement { setting, ours, theirs, namespace }
    }

    /// How the stored settings differ. If the layout differs, that is the only error: the rest means nothing then.
    pub(super) fn disagreements(
        &self,
        stored: &BTreeMap<String, String>,
        namespace: &str,
    ) -> Vec<HeartbeatError> {
        let differing = self.stored.iter().filter_map(|(setting, ours)| {
            let theirs = stored.get(*setting).filter(|theirs| *theirs != ours)?;
            Some(self.disagreement(setting, theirs, namespace))
        });
        let mut differing: Vec<_> = differing.collect();
        if matches!(differing.first(), Some(HeartbeatError::Layout { .. })) {
            differing.truncate(1);
        }
        differing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_is_said_before_a_mode() {
        let settings = Settings::new(IdKind::Integer, Mode::Hll, "60s".parse().unwrap(), Shards::ONE, None);
        let said = |setting, theirs| settings.disagreement(setting, theirs, "ns").to_string();
        for (setting, theirs, number) in
            [("mode", "hll", 1), ("mode", "exact", 1), ("mode", "exact;layout=3", 3), ("layout", "3", 3)]
        {
            let said = said(setting, theirs);
            let both = format!("have layout {number}, but this version of headcount needs layout 2");
            assert!(said.contains(&both) && said.contains("another --namespace"), "{said}");
        }
        let said = said("mode", "exact;layout=2");
        assert!(said.starts_with("--mode is hll here, but exact for the other instances"), "{said}");
    }
}
