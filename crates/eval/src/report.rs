//! Reports of results: a page with charts and tables that needs no network, and Markdown for a pull request.

mod axis;
mod cast;
mod chart;
mod frame;
mod markdown;
mod page;
mod paint;
mod table;
mod text;

pub use markdown::markdown;
pub use page::html;
