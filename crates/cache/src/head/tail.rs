//! What follows the first rows of a head: the window of recent tokens, and the codes of those that have left it.

use heterokv_offload::Arena;
use heterokv_quant::{FitInput, KeyCoder};

use super::Stores;
use crate::Result;
use crate::coded::{CODE_PAGE_TOKENS, CodedKeys};
use crate::exact::ExactRows;
use crate::plan::DevicePlan;

/// What follows the resident rows.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) plan: DevicePlan,
    pub(super) window: ExactRows,
    pub(super) coded: Option<CodedKeys>,
    /// Sum of q² per channel over the queries seen so far; weighs errors when tables are fitted.
    pub(super) query_energy: Vec<f64>,
}

impl Tail {
    /// Tokens whose keys are coded.
    pub(super) fn num_coded(&self) -> usize {
        self.coded.as_ref().map_or(0, CodedKeys::num_tokens)
    }

    /// Of a prompt, the tokens between sinks and window, in whole groups.
    pub(super) fn whole_groups(&self, num_tokens: usize) -> usize {
        let candidates = num_tokens.saturating_sub(self.plan.sinks + self.plan.recent);
        self.plan.whole_groups(candidates)
    }

    /// Tokens that have grown out of the window and can be coded now.
    pub(super) fn whole_groups_leaving(&self) -> usize {
        self.plan.leaving(self.window.len(), self.coded.is_some())
    }

    /// Codes tokens on the device and sends their rows to the host; fits the tables first if need be. After an error there
    /// are the codes, the rows and the tables of before.
    pub(super) fn code(
        &mut self,
        (layer, kv_head): (usize, usize),
        stores: &mut Stores<'_>,
        keys: &[f32],
        values: &[f32],
    ) -> Result<()> {
        let head_dim = self.query_energy.len();
        let (had_tables, num_coded) = (self.coded.is_some(), self.num_coded());
        let coded = match &mut self.coded {
            Some(coded) => coded,
            none => {
                let coder = KeyCoder::fit(
                    self.plan.format,
                    &FitInput {
                        head_dim,
                        keys,
                        query_energy: &normalised(&self.query_energy),
                        seed: (layer as u64) << 32 | kv_head as u64,
                        level: stores.level,
                    },
                )?;
                none.insert(CodedKeys::new(coder, stores.device)?)
            }
        };
        let (level, device) = (stores.level, stores.device);
        let mut encode_keys = || coded.append(level, device, keys, head_dim);
        let mut send_rows = || match &mut stores.host {
            Some(host) => Ok(host.append(layer, kv_head, keys, values)?),
            None => Ok(()),
        };
        // Of a prompt both take long, of a step neither.
        let stored = if keys.len() > CODE_PAGE_TOKENS * head_dim {
            let (coded_keys, host_rows) = rayon::join(encode_keys, send_rows);
            coded_keys.and(host_rows)
        } else {
            encode_keys().and_then(|()| send_rows())
        };
        if stored.is_err() {
            coded.truncate(num_coded);
            if !had_tables {
                self.coded = None;
            }
            if let Some(host) = &mut stores.host {
                host.truncate(layer, kv_head, num_coded);
            }
        }
        stored
    }

    /// A copy whose bytes are in `device`.
    pub(super) fn fork(&self, device: &Arena) -> Result<Self> {
        Ok(Self {
            plan: self.plan,
            window: self.window.fork(device)?,
            coded: self.coded.as_ref().map(|coded| coded.fork(device)).transpose()?,
            query_energy: self.query_energy.clone(),
        })
    }
}

/// Energies over their mean; all ones where no query was seen.
pub(crate) fn normalised(energy: &[f64]) -> Vec<f32> {
    let mean = energy.iter().sum::<f64>() / energy.len() as f64;
    energy.iter().map(|&e| if mean > 0.0 { (e / mean) as f32 } else { 1.0 }).collect()
}
