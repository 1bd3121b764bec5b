"""What people look at: outlines on slices, sheets of them, and drawn pictures where no patient may be shown."""
